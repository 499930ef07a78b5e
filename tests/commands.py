"""Command lines run as processes of their own, without the third of a second that each takes to import what it needs.

`Commands` keeps one small process that has imported modelhub's modules and runs none of them. For each command line it forks a
child that gets the words, the environment, the directory and the standard streams of the command, and runs what the installed
``modelhub`` runs. So a child is what a user's process is, except for what imports do; tests that are about that, about signals or
about the installed script start it themselves (`tests.conftest.command_path`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple

PRELOAD = (
    "modelhub.catalog.index",
    "modelhub.catalog.schema",
    "modelhub.engine",
    "modelhub.jobs.front",
    "modelhub.plugins",
    "modelhub.rescan",
    "modelhub.workers",
    "ctypes",
    "importlib.metadata",
    "numpy",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)


class Ended(NamedTuple):
    """``status`` as `subprocess` has it: negative for a signal."""

    status: int
    stdout: bytes
    stderr: bytes


class Commands:
    """The process that forks, started when it is first needed, with the environment that there is now. Ends with this process."""

    def __init__(self) -> None:
        self._environ = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def run(
        self,
        words: Sequence[str | bytes],
        *,
        environ: Mapping[str, str],
        cwd: str | None = None,
        input: bytes | None = None,
        seconds: float = 120.0,
    ) -> Ended:
        """Run one command line to its end. `subprocess.TimeoutExpired` where that takes longer than ``seconds``."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._channel is not None
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(input or b"")
            files[0].seek(0)
            text = [[os.fsdecode(word) for word in words], dict(environ), cwd or os.getcwd()]
            data = json.dumps(text).encode("utf-8", "surrogatepass")
            socket.send_fds(self._channel, [len(data).to_bytes(8, "little")], [file.fileno() for file in files])
            self._channel.sendall(data)
            pid = int(self._line(seconds))
            try:
                status = int(self._line(seconds))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._line(10)
                raise subprocess.TimeoutExpired([*map(os.fsdecode, words)], seconds) from None
            for file in files:
                file.seek(0)
            return Ended(os.waitstatus_to_exitcode(status), files[1].read(), files[2].read())

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "tests.commands", str(theirs.fileno())]
        # Not with what the test that happens to be the first has set: its plugins would be imported here, and be everyone's.
        here = Path(__file__).parent.parent
        self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd=here, env=self._environ)
        theirs.close()
        self._channel = ours

    def _line(self, seconds: float) -> bytes:
        assert self._channel is not None
        self._channel.settimeout(seconds)
        found = b""
        while not found.endswith(b"\n"):
            piece = self._channel.recv(1)
            if not piece:
                raise RuntimeError("the process that runs commands has ended")
            found += piece
        return found

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.wait(10)


def serve(channel: socket.socket) -> None:
    """Fork a child for each request."""
    from importlib import import_module

    import modelhub.cli

    for name in [*PRELOAD, *(f"modelhub.cli.{module.name}" for module in iter_modules(modelhub.cli.__path__))]:
        with contextlib.suppress(ImportError):
            import_module(name)
    from importlib.metadata import entry_points

    for point in entry_points(group="modelhub"):  # their modules only: which of them take part is each command's business
        with contextlib.suppress(Exception):
            import_module(point.module)
    os.fsync = os.fdatasync = lambda handle: None  # no test pulls the plug
    gc.collect()
    gc.freeze()
    path = list(sys.path)
    while True:
        header, files, _, _ = socket.recv_fds(channel, 8, 3)
        if len(header) < 8:
            os._exit(0)
        data = b""
        while len(data) < int.from_bytes(header, "little"):
            data += channel.recv(1 << 16)
        words, environ, cwd = json.loads(data.decode("utf-8", "surrogatepass"))
        child = os.fork()
        if child == 0:
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            channel.close()
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environ)
            time.tzset()
            sys.path[:] = [*filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
            _end(command(words))
        for file in files:
            os.close(file)
        channel.sendall(b"%d\n" % child)
        channel.sendall(b"%d\n" % os.waitpid(child, 0)[1])


def command(words: list[str]) -> int:
    """What the script ``modelhub`` does."""
    from modelhub.cli import main

    sys.argv = [str(os.path.join(os.path.dirname(sys.executable), "modelhub")), *words]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as an interpreter has it at its start
    return main()


def _end(status: int) -> None:
    """What an interpreter does at its end, short of taking itself apart."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
