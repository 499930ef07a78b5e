"""The beating of one job: a thread that keeps its lease, tells how far it is, hears when it is to stop, and sees to it that it
does. Runs no job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

from modelhub.errors import CatalogError

if TYPE_CHECKING:
    from modelhub.catalog.jobs import Job, Jobs

T = TypeVar("T")

LOOK = 0.15
"""Seconds between two looks at whether somebody wants the job stopped."""
BEAT = 1.0
"""Seconds between two beats."""
PATIENCE = 0.4
"""Seconds that a job gets to end in order once it is to stop. What is inside a plugin's tool, or hangs on a dead drive, does not
hear; then that tool is ended, and after `AFTERWARDS` seconds more its process."""
AFTERWARDS = 0.2
LAST_STEP = 20.0
"""The same while the output gets its name: that takes a moment, and is not stopped half-way unless the drive hangs."""

Why = Literal["cancel", "lost", "end"]
"""Somebody cancelled it; it was taken for dead and belongs to another; its process is to end, and somebody else shall do it."""


class Stopped(Exception):
    """A job is to stop; raised out of the middle of the work."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why: Why = why


class Heart:
    """Beats for ``job`` while its block runs. The work calls `begin`, `did` and `check`, from any thread; they raise `Stopped`
    when it is to stop. ``status``: what the process exits with where the work does not hear; ``farewell`` is called before."""

    def __init__(self, jobs: Jobs, job: Job, status: int = 0, farewell: Callable[[], None] | None = None) -> None:
        self.job = job
        self.stage, self.done, self.total = "", 0, 0
        self.why: Why | None = None
        self.last_step = False
        """Whether the output is getting its name: it is too late to stop."""
        self._jobs, self._status, self._farewell = jobs, status, farewell
        self._asked = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._last_word = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="modelhub-heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._last_word:  # not given back where the process is about to end
            self._over.set()
        # Whatever came of being stopped (a tool that was ended, a file half read) is no failure.
        if self.why is not None and not self.last_step and isinstance(error, Exception) and not isinstance(error, Stopped):
            raise Stopped(self.why) from error

    # --- for the work ---------------------------------------------------------------------------------------------

    def begin(self, stage: str, total: int | None = None) -> None:
        """The work enters a stage, with so many bytes to do; None: it is part of the one before."""
        self.stage = stage
        if total is not None:
            with self._lock:
                self.done, self.total = 0, total
        self.check()

    def did(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
        self.check()

    def check(self) -> None:
        if self.why is not None and not self.last_step:
            raise Stopped(self.why)

    def stop(self, why: Why) -> None:
        """Have the work stop."""
        if self.why is None:
            self._asked = time.monotonic()
            self.why = why

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._beat()
        finally:
            self._jobs.database.leave()

    def _beat(self) -> None:
        beat = time.monotonic() + BEAT
        while not self._over.wait(LOOK):
            now = time.monotonic()
            if self.why is not None:
                if now - self._asked > (LAST_STEP if self.last_step else PATIENCE):
                    self._give_up()
                    return
                continue
            # A catalog, or memory, that cannot be had now can be had later; the lease is long enough for that.
            with contextlib.suppress(CatalogError, MemoryError, OSError):
                if now >= beat:
                    beat = now + BEAT
                    answer = self._jobs.beat(self.job, self.job.owner, self.stage, self.done, self.total)
                else:
                    answer = self._jobs.asked(self.job, self.job.owner)
                if answer != "ok" and not self._over.is_set():
                    self.stop(answer)

    def _give_up(self) -> None:
        """The work does not hear: end what it may be waiting for; then the process, and leave everything in order."""
        kill_children()
        if self._over.wait(AFTERWARDS):
            return
        self._last_word.acquire()
        if self._over.is_set():
            return
        # A drive that hangs keeps what it has, and the next who works there sweeps it; a catalog that is busy is told by whoever
        # finds that we are dead.
        parting = [threading.Thread(target=target, daemon=True) for target in (_abandon, self._tell)]
        for thread in parting:
            thread.start()
        for thread in parting:
            thread.join(0.5)
        with contextlib.suppress(Exception):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(self._status)

    def _tell(self) -> None:
        with contextlib.suppress(Exception):
            if self.why == "cancel":
                self._jobs.stop(self.job, "asked to stop; its process was ended, for it did not hear")
            elif self.why == "end":
                self._jobs.release(self.job, "put back; its process was ended, for it did not hear")
            if self._farewell:
                self._farewell()


def _abandon() -> None:
    from modelhub import scratch

    for _ in range(3):  # threads of the work may still be making files
        scratch.abandon()
        time.sleep(0.02)


def kill_children() -> None:
    """End every process that this one has started, and those that they have."""
    wave = found = _children("self")
    while wave:
        wave = [pid for parent in wave for pid in _children(str(parent))]
        found += wave
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: str) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def patiently(write: Callable[[], T], seconds: float = 120.0, hurry: Callable[[], bool] = bool) -> T:
    """Tell the queue something that must not be lost because the catalog is away for a while. CatalogError where it is away for
    longer, or ``hurry()``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return write()
        except CatalogError:
            if time.monotonic() > deadline or hurry():
                raise
            time.sleep(1.0)
