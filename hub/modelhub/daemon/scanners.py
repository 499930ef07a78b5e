"""The daemon's scan workers: one for each root at work, ended when idle, and killed where it does not get on.

A root whose worker hung (a dead network drive) is left alone for a minute, then for longer, up to an hour; meanwhile the other
roots go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelhub.daemon.wire import Message
from modelhub.daemon.worker import Process

if TYPE_CHECKING:
    from modelhub.daemon.logs import Log
    from modelhub.watch.pending import Hint

IDLE = 30.0
"""Seconds that a worker with nothing to do is kept."""
HANG = 60.0
"""Seconds without a message and without any use of the processor, after which a worker that should be scanning hangs."""
SERVICE = ""
"""The key of the worker that serves no root in particular."""


class Owner(Protocol):
    """What is needed of the daemon."""

    log: Log

    def _join(self, process: Process, heard: Callable[[Process], None]) -> None: ...

    def leave(self, process: Process) -> None: ...

    def scanned(self, root: str, message: Message) -> None: ...

    def _event(self, message: Message) -> None: ...


@dataclass(slots=True)
class _Scanner:
    process: Process
    asked: list[Message] = field(default_factory=list)
    since: float = 0.0


class Scanners:
    """``busy``: the roots being scanned, and those that are left alone for now."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.running: dict[str, _Scanner] = {}
        self.hung: dict[str, tuple[float, float]] = {}  # root -> (left alone until, seconds of that)
        self.deaths: dict[str, int] = {}
        self.hopeless: list[Process] = []

    @property
    def busy(self) -> set[str]:
        return {root for root, scanner in self.running.items() if scanner.asked} | set(self._resting())

    def _resting(self) -> list[str]:
        now = time.monotonic()
        return [root for root, (until, _) in self.hung.items() if now < until]

    def warm(self, root: str) -> None:
        """Have a worker ready for what will be due soon."""
        if root not in self.running and root not in self._resting():
            self._start(root)

    def scan(self, root: str, parts: Sequence[Hint]) -> None:
        self._ask(root, {"do": "scan", "root": root, "parts": [[os.fsdecode(path), deep] for path, deep in parts]})

    def service(self, request: Message) -> None:
        self._ask(SERVICE, request)

    def _ask(self, key: str, request: Message) -> None:
        scanner = self.running.get(key)
        if scanner is None:
            scanner = self._start(key)
        scanner.asked.append(request)
        scanner.process.heard(time.monotonic())
        scanner.process.send(request)

    def _start(self, key: str) -> _Scanner:
        process = Process("modelhub.daemon.scan_worker")
        scanner = self.running[key] = _Scanner(process, since=time.monotonic())
        self.owner._join(process, lambda process: self._heard(key, process))
        return scanner

    def _heard(self, key: str, process: Process) -> None:
        scanner = self.running.get(key)
        now = time.monotonic()
        process.heard(now)
        for message in process.lines.read():
            if "done" not in message:
                self.owner._event(message)
                continue
            if scanner is None or scanner.process is not process or not scanner.asked:
                continue
            scanner.asked.pop(0)
            scanner.since = now
            self.hung.pop(key, None)
            self.deaths.pop(key, None)
            self._done(key, message)
        if process.lines.ended:
            self._ended(key, process)

    def _done(self, key: str, message: Message) -> None:
        if key != SERVICE:
            self.owner.scanned(key, message)
        elif message.get("error"):
            self.owner.log.error(str(message["done"]), error=message["error"], hint=message.get("hint"))
        elif message.get("jobs"):
            self.owner.log.info(str(message["done"]), jobs=message["jobs"])

    def _ended(self, key: str, process: Process) -> None:
        self.owner.leave(process)
        process.kill()
        scanner = self.running.get(key)
        if scanner is None or scanner.process is not process:
            return
        del self.running[key]
        status = process.process.wait()
        process.close()
        if not scanner.asked:
            return
        if key == SERVICE:
            self.owner.log.error(str(scanner.asked[0]["do"]), error=f"the worker ended with status {status}")
            return
        self.deaths[key] = self.deaths.get(key, 0) + 1
        after = min(60.0, 0.25 * 2.0 ** self.deaths[key])
        self.owner.scanned(key, {"error": f"the scan worker ended with status {status}", "after": after})

    def tick(self, now: float) -> None:
        """End workers that have been idle, and those that hang."""
        for process in [process for process in self.hopeless if process.ended() is not None]:
            process.close()
            self.hopeless.remove(process)
        for key, scanner in list(self.running.items()):
            process = scanner.process
            process.flush()
            if not scanner.asked:
                if now - scanner.since >= IDLE:
                    self._end(key)
            elif process.stalled(now) >= HANG:
                self._hang(key, now)

    def _hang(self, key: str, now: float) -> None:
        scanner = self.running.pop(key)
        self.owner.leave(scanner.process)
        scanner.process.kill()
        self.hopeless.append(scanner.process)
        _, before = self.hung.get(key, (0.0, 30.0))
        wait = min(3600.0, before * 2)
        self.hung[key] = (now + wait, wait)
        self.owner.log.error(
            "root does not answer", root=key, seconds=HANG, hint=f"its worker was ended; it is looked at again in {wait:.0f} s"
        )
        if key != SERVICE:
            self.owner.scanned(key, {"error": "its file system does not answer", "hint": "check the mount"})

    def _end(self, key: str) -> None:
        scanner = self.running.pop(key)
        self.owner.leave(scanner.process)
        scanner.process.finish()
        self.hopeless.append(scanner.process)

    def drop(self, root: str) -> None:
        """The root is no root any more."""
        scanner = self.running.pop(root, None)
        self.hung.pop(root, None)
        if scanner is not None:
            self.owner.leave(scanner.process)
            scanner.process.kill()

    def reload(self) -> None:
        """The configuration changed: workers read it again before what they do next."""
        for scanner in self.running.values():
            scanner.process.send({"do": "reload"})

    def next_due(self) -> float:
        """When `tick` has something to do at the earliest (monotonic)."""
        now = time.monotonic()
        due = [now + 5.0 if scanner.asked else scanner.since + IDLE for scanner in self.running.values()]
        due += [until for until, _ in self.hung.values() if until > now]
        return min(due, default=now + 3600.0)

    def status(self, root: str) -> dict[str, Any]:
        """What is to be shown of a root's scanning."""
        return {"answers": root not in self._resting()}

    def close(self) -> None:
        for scanner in self.running.values():
            self.owner.leave(scanner.process)
            scanner.process.kill()
        self.running.clear()
