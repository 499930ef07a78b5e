"""The daemon's side of a worker process: start it, talk to it, tell whether it gets on, end it. What it does is its own module's
business (`modelhub.daemon.scan_worker`, `modelhub.jobs.worker`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from modelhub.daemon.wire import Lines, Message, pack

_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A worker that runs ``python -m module arguments``. It dies with us: it is told our process id, and sees to it."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--parent", str(os.getpid()), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the daemon's to deal with; and what the worker starts can be ended with it
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self._input = self.process.stdin.fileno()
        os.set_blocking(self._input, False)
        self.lines = Lines(self.process.stdout.fileno())
        self._unsent: deque[bytes] = deque()
        self._spent = -1.0
        self._since = self.started

    def fileno(self) -> int:
        return self.lines.handle

    def send(self, message: Message) -> None:
        self._unsent.append(pack(message))
        self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes; whether nothing is left."""
        while self._unsent:
            data = self._unsent[0]
            try:
                written = os.write(self._input, data)
            except BlockingIOError:
                return False
            except OSError:  # it is dead, which shows elsewhere
                self._unsent.clear()
                return True
            if written == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = data[written:]
        return True

    def finish(self) -> None:
        """Let it end when it has done what it was told: its input is closed."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def ask(self) -> None:
        """Have it end soon, in order."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it started, now. One that hangs in the kernel is left to it."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.process.poll()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def stalled(self, now: float) -> float:
        """For how many seconds neither it nor what it started has used the processor. Waiting for a dead mount does not."""
        spent = _spent(self.pid)
        if spent != self._spent:
            self._spent, self._since = spent, now
        return now - self._since

    def heard(self, now: float) -> None:
        self._since = now


def _spent(leader: int) -> float:
    """Processor time of the processes of a session, and what ended ones of theirs took, in seconds."""
    total = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:  # session
            total += sum(map(int, fields[11:15]))
    return total / _TICKS


def resident(leader: int) -> int:
    """Bytes of memory that the processes of a session hold."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")


def die_with(parent: int) -> None:
    """For a worker, first thing: be killed when the daemon ends, however it does."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    if os.getppid() != parent:
        os._exit(0)
