"""Where an output grows before it gets its name: a directory beside the destination that the scanner ignores.

Its owner holds a lock on it for as long as it lives, so that the next run can tell what a killed one left, and sweep it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Sequence
from types import TracebackType

from modelhub.errors import ConversionError, OutputExists

PREFIX = ".modelhub-"
_LOCK = "owner.lock"


class Scratch:
    """A scratch directory in ``parent``, gone when the block ends. `sweep` of the parent comes first."""

    def __init__(self, parent: str) -> None:
        sweep(parent)
        self.parent = parent
        self.path = os.path.join(parent, f"{PREFIX}{secrets.token_hex(6)}.tmp")
        try:
            os.makedirs(self.path)
        except OSError as error:
            raise ConversionError(f"cannot write in {parent}: {error.strerror}", "name another place with -o PATH") from error
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.output = os.path.join(self.path, "output")
        os.mkdir(self.output)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def publish(self, names: Sequence[str], *, replace: bool) -> None:
        """Give the files (or directories) of ``output`` their real names in ``parent``, in this order: an index comes last. All
        are fsynced already. OutputExists where a name is taken and ``replace`` is not set; then none of them has moved."""
        if not replace:
            for name in names:
                target = os.path.join(self.parent, name)
                if os.path.lexists(target) and not is_empty_directory(target):
                    raise OutputExists(f"{target} is there already", "--force replaces it, -o PATH names another place")
        for name in names:
            source, target = os.path.join(self.output, name), os.path.join(self.parent, name)
            if os.path.isdir(source):
                self._publish_directory(source, target, replace)
            elif replace:
                os.replace(source, target)
            else:
                self._publish_new(source, target)
        sync_directory(self.parent)

    def _publish_new(self, source: str, target: str) -> None:
        try:
            os.link(source, target)  # unlike a rename, this never replaces what came in between
            os.unlink(source)
        except FileExistsError as error:
            raise OutputExists(f"{target} is there already", "--force replaces it, -o PATH names another place") from error
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise OutputExists(f"{target} is there already", "--force replaces it, -o PATH names another place") from None
            os.rename(source, target)

    def _publish_directory(self, source: str, target: str, replace: bool) -> None:
        if replace and os.path.lexists(target):
            os.rename(target, os.path.join(self.path, "replaced"))
        try:
            os.rename(source, target)
        except OSError as error:
            raise OutputExists(f"{target} is there already", "--force replaces it, -o PATH names another place") from error


def is_empty_directory(path: str) -> bool:
    """Whether ``path`` is a directory with nothing in it: an output may take its place."""
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def sweep(parent: str) -> list[str]:
    """Remove the scratch directories in ``parent`` whose owners are gone; returns their paths."""
    removed = []
    try:
        names = [name for name in os.listdir(parent) if name.startswith(PREFIX) and name.endswith(".tmp")]
    except OSError:
        return []
    for name in names:
        path = os.path.join(parent, name)
        try:
            lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # never locked: killed between its two first steps, or not ours to touch
            try:
                os.rmdir(path)
            except OSError:
                continue
            removed.append(path)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        except OSError:  # somebody is at work in it, or the file system cannot lock: it is left alone
            continue
        finally:
            os.close(lock)
    return removed


def sync_directory(path: str) -> None:
    """Make renames in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
