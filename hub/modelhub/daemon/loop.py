"""`Daemon`: composes the event sources, the scan workers and the job workers. One thread, one `select`; it opens no file of a
root, loads no plugin and parses nothing.

Hints come in from the event sources, wait in `Pending` until their directories have been quiet, and go as parts to the scan
worker of their root; a worker that does not get on is ended and its root left alone for a while. Jobs are in the catalog: all
that is done here is to have workers while there are any.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelhub import config
from modelhub.daemon import notify as systemd
from modelhub.daemon.crew import Crew
from modelhub.daemon.lock import DaemonLock, Taken
from modelhub.daemon.logs import Log
from modelhub.daemon.scanners import Scanners
from modelhub.daemon.wire import Message
from modelhub.daemon.worker import Process
from modelhub.errors import ModelhubError
from modelhub.model import printable
from modelhub.watch.mounttable import MountTable
from modelhub.watch.pending import Hint, Pending
from modelhub.watch.supervise import Supervisor

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

LOOK = 1.0
"""Seconds between looks at the queue: how late a job that was added elsewhere may start."""
ROOTS = 5.0
"""Seconds between looks at the list of roots, which `modelhub scan` and `modelhub roots` change."""
RULES = 3600.0
"""Seconds between applications of the rules to everything: tags and config may have changed what they match."""
SOON, PATIENT = 0.5, 20.0
"""Seconds after which the rules are applied first: once the drives have been looked at, and at the latest."""
SCRUB = 600.0
"""Seconds between looks at what is due for reading again."""
END = 3.0
"""Seconds that workers get to put their work back before they are killed."""
FAULTS = 20
"""So many unexpected errors in a minute end the daemon: whoever runs it starts it afresh."""

Tell = Callable[[Message], None]


class Daemon:
    """``poll``: poll every root so often (seconds), whatever its file system says. ``tell`` gets every event."""

    def __init__(self, catalog: Catalog, *, poll: float | None = None, log: Log | None = None, tell: Tell | None = None) -> None:
        self.catalog = catalog
        self.settings = config.settings()
        self.poll = poll
        self.log = log or Log()
        self.tell = tell or (lambda message: None)
        self.selector = selectors.DefaultSelector()
        self.hints: deque[tuple[str, Hint | None]] = deque()
        self.woken = threading.Event()
        self.wake_read, self.wake_write = os.pipe()
        for handle in (self.wake_read, self.wake_write):
            os.set_blocking(handle, False)
        self.pending = Pending(self.settings.watch.settle, longest=self.settings.watch.patience)
        self.supervisor = Supervisor(
            self.notify,
            poll=poll,
            interval=self.settings.watch.poll,
            reconcile=self.settings.watch.reconcile,
            exclude=self.settings.exclude,
        )
        self.scanners = Scanners(self)
        self.crew = Crew(self.settings.jobs.workers)
        self.mounts = MountTable()
        self.lock = DaemonLock(catalog)
        self.displaced: Taken | None = None
        self.ending = 0
        self.reload = False
        self.next: dict[str, float] = {}
        self.status: dict[str, Any] = {}
        self.faults: list[float] = []
        self.jobs_due = True
        self.patient = 0.0
        self.unseen: set[str] = set()
        """Roots that no scan has come back from yet."""

    # --- its life -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Watch until a signal says otherwise; the exit status. CatalogError where another daemon is at it."""
        self.lock.acquire()
        try:
            self._start()
            while not self.ending:
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 - a fault of ours must not end a watch of months
                    self._fault(error)
            status = self._stop()
            if self.displaced is not None:
                raise self.displaced
            return status
        finally:
            self.scanners.close()
            for member in self.crew.members:
                member.kill()
            self.lock.release()

    def _start(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signal)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        self.selector.register(self.wake_read, selectors.EVENT_READ, self._woken)
        if (handle := self.mounts.fileno()) >= 0:
            self.selector.register(handle, self.mounts.events, self._mounted)
        now = time.monotonic()
        self._look_at_roots(now)
        self.patient = now + PATIENT
        self.next = {"roots": now + ROOTS, "rules": now + SOON, "scrub": now + SCRUB, "jobs": now, "watchdog": now}
        self.log.info(
            "watching", pid=os.getpid(), roots=len(self.supervisor.roots), catalog=self.catalog.database.path or "server"
        )
        systemd.notify(systemd.READY)

    def _fault(self, error: Exception) -> None:
        """Note an error that nobody expected, and go on; but not in a circle."""
        self.faults = [when for when in self.faults if when > time.monotonic() - 60.0] + [time.monotonic()]
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.log.error(
            "internal", error=f"{type(error).__name__}: {error}", at=f"{os.path.basename(where.filename)}:{where.lineno}"
        )
        if len(self.faults) > FAULTS:
            raise error
        time.sleep(0.2)

    def _signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.ending = number

    def _stop(self) -> int:
        """Put everything down: job workers give their jobs back, a scan ends where it is."""
        systemd.notify(systemd.STOPPING)
        self.log.info("ending", signal=signal.Signals(self.ending).name)
        for member in self.crew.members:
            member.ask()
        self.scanners.close()
        deadline = time.monotonic() + END
        while any(member.ended() is None for member in self.crew.members) and time.monotonic() < deadline:
            for member in self.crew.members:
                self._heard(member)
            time.sleep(0.02)
        for member in self.crew.members:
            member.kill()
        self.supervisor.close()
        self._write_status("ended")
        return 130 if self.ending == signal.SIGINT else 0

    # --- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        due = [
            *self.next.values(),
            self.supervisor.next_due(),
            self.pending.next_due(self.scanners.busy),
            self.scanners.next_due(),
        ]
        for key, _ in self.selector.select(max(0.0, min(due) - now)):
            key.data(key.fileobj)
        if self.ending:
            return
        now = time.monotonic()
        if self.reload:
            self._reload(now)
        while self.hints:
            root, hint = self.hints.popleft()
            if root in self.supervisor.roots:
                self.pending.add(root, hint or Hint(b"", True), now, at_once=hint is None)
                self.scanners.warm(root)
        self.supervisor.tick(now)
        for root, parts in self.pending.due(now, self.scanners.busy).items():
            self.scanners.scan(root, parts)
        self.scanners.tick(now)
        self._scheduled(now)

    def _scheduled(self, now: float) -> None:
        """What is done by the clock."""
        due = [name for name, when in self.next.items() if now >= when]
        if "roots" in due:
            self.next["roots"] = now + ROOTS
            self._look_at_lock()
            self._look_at_roots(now)
        if "rules" in due:
            if self.unseen and now < self.patient:  # what is known of a drive may be old until it was looked at
                self.next["rules"] = now + SOON
            else:
                self.next["rules"] = now + RULES
                self.scanners.service({"do": "rules"})
        if "scrub" in due:
            self.next["scrub"] = now + SCRUB
            if self.settings.scrub is not None:
                self.scanners.service({"do": "scrub"})
        if "watchdog" in due:
            self.next["watchdog"] = now + (systemd.interval() or 3600.0)
            systemd.notify(systemd.WATCHDOG)
        if "jobs" in due or self.jobs_due:
            self.next["jobs"] = now + LOOK
            self.jobs_due = False
            self._look_at_jobs(now)

    def _look_at_jobs(self, now: float) -> None:
        try:
            waiting = self.catalog.jobs.waiting()
        except ModelhubError as error:
            self.log.error("catalog", error=error.message)
            return
        self.crew.wanted(waiting, now, lambda member: self._join(member, self._heard))

    def _look_at_lock(self) -> None:
        """A connection to a server may be lost for a while, and with it what keeps others from watching for the same catalog."""
        try:
            if not self.lock.keep():
                self.status = {}  # to be written again
                self.log.warning("lock", what="the connection to the catalog was lost; the daemon's lock was taken again")
        except Taken as error:
            self.log.error("lock", error=error.message, hint=error.hint)
            self.displaced, self.ending = error, signal.SIGTERM
        except ModelhubError as error:
            self.log.error("catalog", error=error.message)

    def _look_at_roots(self, now: float) -> None:
        try:
            roots = [root for root in self.catalog.roots() if root.names is None]
        except ModelhubError as error:
            self.log.error("catalog", error=error.message)
            return
        places = [root.path for root in roots]
        if places != list(self.supervisor.roots):
            added = set(places) - set(self.supervisor.roots)
            for gone in set(self.supervisor.roots) - set(places):
                self.pending.forget(gone)
                self.scanners.drop(gone)
                self.unseen.discard(gone)
                self.log.info("root removed", root=gone)
            self.supervisor.set_roots(places)
            self.unseen |= added
            for root in sorted(added):
                status = self.supervisor.status(root)
                self.log.info("root", root=root, observer=status["observer"], why=status["reason"])
        self._write_status("watching")

    def _reload(self, now: float) -> None:
        """Read the configuration again; where it is wrong, the old one stays."""
        self.reload = False
        systemd.reloading()
        try:
            settings = config.settings()
            from modelhub.rules import apart

            apart.check()
        except ModelhubError as error:
            self.log.error("reload", error=error.message, hint=error.hint)
        else:
            self.settings = settings
            self.crew.most = settings.jobs.workers
            self.pending.settle, self.pending.longest = settings.watch.settle, settings.watch.patience
            self.supervisor.configure(interval=settings.watch.poll, reconcile=settings.watch.reconcile, exclude=settings.exclude)
            self.scanners.reload()
            self.scanners.service({"do": "rules", "changed": True})
            self.next["rules"] = now + RULES
            self.log.info("reload")
        systemd.notify(systemd.READY)

    # --- what comes in --------------------------------------------------------------------------------------------

    def notify(self, root: str, hint: Hint | None) -> None:
        """From any thread: something happened in ``root``; None: anything may have."""
        self.hints.append((root, hint))
        if not self.woken.is_set():
            self.woken.set()
            with contextlib.suppress(OSError):  # full: it wakes anyway
                os.write(self.wake_write, b"\0")

    def _woken(self, handle: Any) -> None:
        self.woken.clear()
        with contextlib.suppress(OSError):
            while os.read(handle, 4096):
                pass

    def _mounted(self, _: Any) -> None:
        if self.mounts.changed():
            self.log.debug("mounts changed")
            self.supervisor.mounts_changed(time.monotonic())

    def _join(self, process: Process, heard: Callable[[Process], None]) -> None:
        self.selector.register(process.lines.handle, selectors.EVENT_READ, lambda _: heard(process))

    def leave(self, process: Process) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(process.lines.handle)

    def _heard(self, member: Process) -> None:
        """A job worker has something to say, or has ended."""
        for message in member.lines.read():
            self._event(message)
        if member.lines.ended:
            self.leave(member)
            status = self.crew.left(member, time.monotonic())
            if status:
                self.log.warning("job worker ended", pid=member.pid, status=status)
            self.jobs_due = True

    def _event(self, message: Message) -> None:
        kind = message.get("event")
        if kind:
            self.tell(message)
            fields = {name: value for name, value in message.items() if name not in ("event", "level")}
            self.log("debug" if kind in ("indexed", "changed", "missing") else "info", str(kind), **fields)

    def scanned(self, root: str, message: Message) -> None:
        """A scan worker is done with what it was given."""
        now = time.monotonic()
        self.unseen.discard(root)
        seconds = float(message.get("seconds", 0.0))
        self.pending.done(root, seconds, now)
        self.supervisor.done(root, seconds, now)
        if message.get("error"):
            self.log.error("scan", root=root, error=message["error"], hint=message.get("hint"))
            self.pending.requeue(root, [Hint(b"", True)], float(message.get("after", 60.0)), now)
            return
        for path, wait in message["unsettled"]:
            self.pending.requeue(root, [Hint(os.fsencode(path), False)], wait, now)
        self.pending.requeue(root, [Hint(os.fsencode(path), True) for path in message["retry"]], 60.0, now)
        if message["suspect"]:
            self.pending.requeue(root, [Hint(b"", True)], max(10.0, 2 * self.pending.settle), now)
        self.supervisor.there(root, not message["offline"], now)
        for problem in message["problems"]:
            self.log.warning("problem", root=root, what=problem)
        counts = {name: message[name] for name in ("new", "changed", "gone", "jobs") if message[name]}
        state = "offline" if message["offline"] else "suspect" if message["suspect"] else ""
        self.log("info" if counts or state else "debug", "scanned", root=root, seconds=seconds, state=state, **counts)
        self.jobs_due = self.jobs_due or bool(message["jobs"])

    def _write_status(self, state: str) -> None:
        """What `modelhub roots` and `modelhub doctor` show of us; written where it changed."""
        roots = {printable(root): self.supervisor.status(root) | self.scanners.status(root) for root in self.supervisor.roots}
        status = {"state": state, "roots": roots}
        if status != self.status:
            try:
                self.catalog.set_daemon_status(self.lock.holder.text, status)
                self.status = status
            except ModelhubError as error:
                self.log.warning("catalog", error=error.message)
