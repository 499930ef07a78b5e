"""One worker process: started by fork or spawn, limited, watched, and never left behind. What work it does is `modelhub.workers`.

A process that has one thread is forked, which costs a millisecond; one that has more is not safe to fork, and a fresh
interpreter is spawned. Either way the worker talks over one socket, shares one page of memory that names the file in hand, and
dies with its parent.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from modelhub.detect import Blame
from modelhub.errors import ModelhubError, PluginError

_AREA = 16 * 1024
_HEADER = struct.Struct("<QI")  # how many marks were made; the length of the text that follows, 0 when nothing is in hand
_GRACE = 2.0
"""Seconds that a killed process gets to disappear. One that hangs in the kernel (a dead mount) is left to it, and reaped
later."""

_parent_ends: weakref.WeakSet[Connection] = weakref.WeakSet()
_unreaped: list[int] = []
_area: mmap.mmap | None = None
_marks = 0
_alarm = 0


class Died(Exception):
    """The worker is gone."""


# --- the parent's side --------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Worker:
    """A running worker as its parent sees it."""

    pid: int
    connection: Connection
    area: mmap.mmap
    seconds: float
    later: deque[bytes] = field(default_factory=deque)
    """Messages too long to send while the worker is busy."""
    hung: bool = False
    ended: str = ""

    def send(self, payload: bytes) -> None:
        self.connection.send_bytes(payload)

    def receive(self) -> Any:
        """The next answer; `Died` where none will come."""
        try:
            # Written by our own worker, which never hands on bytes of a file unparsed.
            return pickle.loads(self.connection.recv_bytes())  # noqa: S301
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise Died from error

    def progress(self) -> int:
        """A number that grows with every file that the worker takes in hand."""
        return int(_HEADER.unpack_from(self.area)[0])

    def in_hand(self) -> Blame | None:
        """What the worker was doing."""
        _, length = _HEADER.unpack_from(self.area)
        if not length:
            return None
        data = self.area[_HEADER.size : _HEADER.size + min(length, _AREA - _HEADER.size)]
        stage, name, path = os.fsdecode(data).split("\0", 2)
        return Blame(stage, name, path)

    def kill(self) -> str:
        """End the worker now, and say how it ended."""
        if self.ended:
            return self.ended
        status = _reap(self.pid, 0.0 if self.hung else 0.2 if _closed(self.connection) else 0.0)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            if _reap(self.pid, _GRACE) is None:
                _unreaped.append(self.pid)
        self.connection.close()
        if self.hung:
            self.ended = f"stood still for {self.seconds:g} s and was stopped"
        elif status is None:
            self.ended = "was stopped"
        elif os.WIFSIGNALED(status):
            self.ended = f"crashed ({_signal_name(os.WTERMSIG(status))})"
        else:
            self.ended = f"ended with exit status {os.waitstatus_to_exitcode(status)}"
        for pid in list(_unreaped):
            if _reap(pid, 0.0) is not None:
                _unreaped.remove(pid)
        return self.ended


def _closed(connection: Connection) -> bool:
    """Whether the other end is closed: then the process is on its way out, and its own status is worth waiting for."""
    try:
        return connection.poll(0) and not _peek(connection)
    except OSError:
        return True


def _peek(connection: Connection) -> bytes:
    with socket.socket(fileno=os.dup(connection.fileno())) as peek:
        return peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _reap(pid: int, seconds: float) -> int | None:
    """The exit status of a child, waiting so long for it; None where it still runs."""
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody else in this process has reaped it
            return 0
        if done:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def start_worker(memory: int, seconds: float) -> Worker:
    """Start a worker with ``memory`` bytes beyond what it starts with."""
    ours, theirs = socket.socketpair()
    handle = os.memfd_create("modelhub-worker")
    os.ftruncate(handle, _AREA)
    area = mmap.mmap(handle, _AREA)
    connection = Connection(ours.detach())
    _parent_ends.add(connection)
    try:
        if len(os.listdir("/proc/self/task")) == 1:
            pid = _fork(theirs.fileno(), handle, memory)
        else:
            pid = _spawn(theirs.fileno(), handle, memory)
    except BaseException:
        connection.close()
        raise
    finally:
        theirs.close()
        os.close(handle)
    return Worker(pid, connection, area, seconds)


def _fork(channel: int, handle: int, memory: int) -> int:
    from modelhub import plugins

    plugins.get()  # once here, and not in every worker
    if threading.current_thread() is threading.main_thread():
        import ctypes  # noqa: F401 - the worker needs it; imported once here
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # No Ctrl-C between the fork and the moment when the worker ignores it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        pid = os.fork()
        if pid == 0:
            try:
                gc.freeze()  # nothing of the parent's (its catalog's connection!) may be finalised here
                for connection in list(_parent_ends):
                    with contextlib.suppress(OSError):
                        os.close(connection.fileno())
                _serve(channel, handle, memory, parent, blocked)
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _spawn(channel: int, handle: int, memory: int) -> int:
    from modelhub import plugins

    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path))
    # A plugin that failed here would fail there, perhaps after hanging for a while.
    useless = {report.name for report in plugins.get().reports if report.status in ("failed", "blocked")}
    environment["MODELHUB_DISABLE"] = ",".join(sorted(useless | plugins.disabled_names()))
    # Tied to the thread that starts it: see `_die_with`.
    tied = "import ctypes; " if threading.current_thread() is threading.main_thread() else ""
    arguments = [sys.executable, "-c", f"{tied}from modelhub.process import main; main()", str(memory), str(os.getpid())]
    # Numbers that are not in use here, so that neither copy can overwrite the other.
    actions = [(os.POSIX_SPAWN_DUP2, channel, 100), (os.POSIX_SPAWN_DUP2, handle, 101)]
    return os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)


# --- the worker's side --------------------------------------------------------------------------------------------


def main() -> None:
    """A spawned worker begins here."""
    try:
        _serve(100, 101, int(sys.argv[1]), int(sys.argv[2]), set())
    finally:
        os._exit(1)


def mark(stage: str, format_name: str, path: str) -> None:
    """Say what is in hand; once a file, before plugin code sees it."""
    global _marks
    if _area is None:
        return
    _marks += 1
    data = os.fsencode(f"{stage}\0{format_name}\0{path}")[: _AREA - _HEADER.size]
    _HEADER.pack_into(_area, 0, _marks, 0)
    _area[_HEADER.size : _HEADER.size + len(data)] = data
    _HEADER.pack_into(_area, 0, _marks, len(data))
    if _alarm:
        signal.alarm(_alarm)


def _unmark() -> None:
    if _area is not None:
        _HEADER.pack_into(_area, 0, _marks, 0)
    signal.alarm(0)


def _serve(channel: int, handle: int, memory: int, parent: int, mask: Any) -> None:
    """Answer messages until the parent is gone."""
    global _area, _alarm
    _area = mmap.mmap(handle, _AREA)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _die_with(parent)
    os.dup2(2, 1)  # what a plugin prints must not end up in the middle of a command's JSON
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    gc.set_threshold(50_000, 20, 100)
    from modelhub import plugins, workers

    plugins.get()
    _limit_memory(memory)
    connection = Connection(channel)
    mark("", "", "")
    _unmark()  # started: from here on the parent's clock runs
    keep: dict[int, Any] = {}
    while True:
        try:
            kind, seconds, content = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own parent's message
        except (EOFError, OSError):
            os._exit(0)
        # The parent stops a worker that stands still; this is for the case that the parent is gone.
        _alarm = int(seconds * 2) + 10
        signal.alarm(_alarm)
        answer: tuple[bool, Any]
        try:
            if kind == "call":
                function, args = content
                answer = True, function(*args)
            else:
                listings, parts, keep_next = content
                answer = True, workers.serve_inspect(keep, listings, parts, keep_next, mark)
        except ModelhubError as error:
            answer = False, error
        except Exception as error:  # noqa: BLE001 - it is reported in the parent
            answer = False, PluginError(plugins.describe(error))
        _unmark()
        try:
            payload = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 - whatever __reduce__ raises
            payload = pickle.dumps((False, PluginError(f"the answer cannot be handed on: {plugins.describe(error)}")))
        try:
            connection.send_bytes(payload)
        except OSError:
            os._exit(0)


def _limit_memory(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * mmap.PAGESIZE
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + memory if hard == resource.RLIM_INFINITY else min(hard, now + memory)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, however it dies. The kernel ties this to the thread that started us: only the main thread
    is known to live as long as its process. Otherwise the end of the socket is what tells us, at the next message."""
    if "ctypes" in sys.modules:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)
