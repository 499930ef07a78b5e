"""What a job may take of the machine, and what to make of a job that failed: whether it is worth another try. Runs no job."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import resource
import sqlite3
import time
from collections.abc import Iterator

from modelhub.errors import CatalogError, ModelhubError, TemporaryError

BACKOFF = (60.0, 300.0, 1500.0)
"""Seconds before a failed job is tried again: after the first failure, the second, and all later ones."""
TRANSIENT = frozenset({
    errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENOTCONN, errno.ECONNRESET, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EAGAIN, errno.ENODEV, errno.ENXIO,
})  # fmt: skip
"""What a drive says that is full, away, or not ours to read just now."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE


def step_back() -> None:
    """Leave processor and disk to others. As far as may be."""
    with contextlib.suppress(OSError):
        os.nice(10)
    number = _IOPRIO_SET.get(platform.machine())
    if number:
        ctypes.CDLL(None).syscall(number, 1, 0, _IDLE)  # ioprio_set(IOPRIO_WHO_PROCESS, ourselves)


def limit_memory(memory: int) -> None:
    """Let this process and those it starts take ``memory`` bytes more than it has now, each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        limit = int(statm.read().split()[0]) * mmap.PAGESIZE + memory
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def out_of_memory(error: BaseException) -> bool:
    """Whether a job failed because it was not given more memory."""
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and "start new thread" in str(cause))
        for cause in _causes(error)
    )


def transient(error: BaseException) -> bool:
    """Whether a later try may succeed: nothing is wrong with the job, but with a drive, the catalog, or the moment."""
    for cause in _causes(error):
        if isinstance(cause, TemporaryError):
            return True
        if isinstance(cause, OSError) and cause.errno in TRANSIENT:
            return True
        if isinstance(cause, CatalogError) and _catalog_busy(cause):
            return True
    return False


def again_at(error: BaseException, failures: int, max_attempts: int) -> int | None:
    """When to try again what has failed ``failures`` times, in nanoseconds since 1970; None for never."""
    if failures >= max_attempts or not transient(error):
        return None
    return time.time_ns() + int(BACKOFF[min(failures, len(BACKOFF)) - 1] * 1e9)


def _catalog_busy(error: CatalogError) -> bool:
    """Whether the catalog was locked, full or away: not damaged, not newer than the program."""
    return any(
        isinstance(cause, sqlite3.OperationalError) or type(cause).__name__ == "OperationalError" for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def told(error: BaseException, memory: int) -> tuple[str, str]:
    """(what went wrong, what to do) of a job's failure, in words. ``memory``: its limit, 0 for none."""
    if out_of_memory(error):
        what = f"it needs more than the {memory:,} bytes of memory that a job may take" if memory else "out of memory"
        return what, "give it more: `[jobs] memory` in config.toml; fewer threads need less"
    if isinstance(error, ModelhubError):
        return error.message, error.hint
    if isinstance(error, OSError):
        what = error.strerror or str(error) or "input/output error"
        return f"{error.filename}: {what}" if error.filename else what, ""
    return f"this is a bug in modelhub or in a plugin: {type(error).__name__}: {error}", "please report it"
