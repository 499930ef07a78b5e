"""What scans, for the daemon: a process for each root at work, so that a drive that hangs stalls one worker and nothing else.

It answers requests on its standard input with messages on its standard output (`modelhub.daemon.wire`): ``scan`` (parts of one
root; rules are applied to what changed), ``rules`` (apply them to everything), ``scrub`` (take up what is due for reading
again). It keeps what it knows of files that are still growing between requests, and ends with its input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelhub.daemon.wire import Message, pack
from modelhub.daemon.worker import die_with
from modelhub.errors import ModelhubError

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.config import Settings
    from modelhub.rules.read import Rule
    from modelhub.settle import Settling
    from modelhub.workers import ParsePool


BEFORE = 120 * 10**9
"""How far back, in nanoseconds, rules look for what was recorded before this worker began."""


class ScanWorker:
    """``tell`` sends a message to the daemon."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self.tell = tell
        self.settling: dict[str, Settling] = {}
        self._catalog: Catalog | None = None
        self._pool: ParsePool | None = None
        self._settings: Settings | None = None
        self._rules: tuple[Rule, ...] | None = None
        self.dispatched = time.time_ns() - BEFORE

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            from modelhub.catalog import Catalog
            from modelhub.catalog.database import SMALL_CACHE

            self._catalog = Catalog.open(cache=SMALL_CACHE)
        return self._catalog

    @property
    def pool(self) -> ParsePool:
        if self._pool is None:
            from modelhub.workers import ParsePool

            self._pool = ParsePool()
        return self._pool

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            from modelhub import config

            self._settings = config.settings()
        return self._settings

    @property
    def rules(self) -> tuple[Rule, ...]:
        if self._rules is None:
            from modelhub.rules.read import load_rules

            self._rules = load_rules()
        return self._rules

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._catalog is not None:
            self._catalog.close()

    # --- requests -------------------------------------------------------------------------------------------------

    def answer(self, request: Message) -> None:
        """Do one request; what goes wrong is told, not raised."""
        do = str(request.get("do"))
        if do == "reload":
            self._settings = self._rules = None
            self.settling.clear()
            return
        try:
            done = getattr(self, f"do_{do}")(request)
            self.tell({"done": do, **done})
        except ModelhubError as error:
            self.tell({"done": do, "error": error.message, "hint": error.hint, "code": error.code})
        except OSError as error:
            self.tell({"done": do, "error": f"{error.strerror}: {error.filename or ''}".rstrip(": "), "code": "system"})
        except Exception as error:  # noqa: BLE001 - a fault of ours must cost one scan, not the daemon
            from modelhub.plugins import describe

            self.tell({"done": do, "error": describe(error), "code": "internal"})

    def do_scan(self, request: Message) -> Message:
        from modelhub.mounts import mount_of
        from modelhub.rescan import Part, rescan
        from modelhub.settle import LOCAL, Settling

        began = time.time_ns()
        started = time.monotonic()
        root = str(request["root"])
        watch = self.settings.watch
        settling = self.settling.get(root)
        if settling is None:
            mount = mount_of(root)
            local = mount is not None and mount.type in LOCAL
            settling = Settling(watch.settle, longest=watch.patience, trust_clock=local)
            self.settling[root] = settling
        if not all(deep for _, deep in request["parts"]):
            self.pool.start()  # something is new, most likely; and now a worker is small, before a scan's memory comes with it
        was_offline = any(known.offline for known in self.catalog.roots() if known.path == root)
        found = rescan(
            self.catalog,
            root,
            [Part(os.fsencode(path), bool(deep)) for path, deep in request["parts"]],
            pool=self,
            settling=settling,
            observer=self.observe,
            exclude=self.settings.exclude,
        )
        summary = found.summary
        jobs = 0
        if self.rules and not found.offline:
            # Not only what this scan took in: jobs record their outputs themselves, before anyone looks at them. And of a drive
            # that is back, anything may have waited.
            jobs = self.dispatch(since=0 if was_offline else min(began, self.dispatched))
            self.dispatched = began
        return {
            "root": root,
            "parts": len(request["parts"]),
            "seconds": time.monotonic() - started,
            "new": summary.new,
            "changed": summary.changed,
            "gone": summary.gone,
            "problems": summary.problems[:20],
            "unsettled": [[os.fsdecode(path), seconds] for path, seconds in found.unsettled.items()],
            "retry": [os.fsdecode(path) for path in found.retry],
            "offline": found.offline,
            "suspect": found.suspect,
            "jobs": jobs,
        }

    def do_rules(self, request: Message) -> Message:
        from modelhub.rules.dispatch import forget

        cancelled = forget(self.catalog, self.rules)  # at the start too: they may have changed since the last one ended
        return {"jobs": self.dispatch(since=None) if self.rules else 0, "cancelled": cancelled}

    def do_scrub(self, request: Message) -> Message:
        from modelhub import scrub

        return {"jobs": len(scrub.due(self.catalog, self.settings.scrub, time.time_ns()))}

    def dispatch(self, since: int | None) -> int:
        from modelhub.rules.dispatch import dispatch

        return len(dispatch(self.catalog, self.rules, since=since))

    # --- what a scan needs ----------------------------------------------------------------------------------------

    def inspect(self, tasks: Any) -> Any:
        """Parse in worker processes; they are there once something is to be parsed."""
        return self.pool.inspect(tasks)

    def observe(self, kind: Any, identity: str, path: str) -> None:
        """Tell the daemon and the plugins' observers of what was recorded."""
        from modelhub import plugins
        from modelhub.declared import Event

        self.tell({"event": kind, "id": identity, "path": path})
        plugins.get().emit(Event(kind=kind, checkpoint=identity, path=path))


def main() -> None:
    parser = argparse.ArgumentParser("modelhub.daemon.scan_worker")
    parser.add_argument("--parent", type=int, required=True)
    die_with(parser.parse_args().parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a plugin prints goes to the log, not between the messages.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def tell(message: Message) -> None:
        try:
            out.write(pack(message))
        except OSError:
            os._exit(0)

    worker = ScanWorker(tell)
    # Done while there is time: a request comes when files have stood still.
    import modelhub.catalog.index
    import modelhub.rescan  # noqa: F401

    with contextlib.suppress(ModelhubError):  # the request will say
        worker.catalog.roots()

    for line in sys.stdin.buffer:
        import json

        worker.answer(json.loads(line))
    worker.close()


if __name__ == "__main__":
    main()
