"""A process that does jobs: claims one, runs it, tells the queue what came of it, and so on until there are no more.

    python -m modelhub.jobs.worker [--parent PID] [--idle SECONDS | --drain] [--events]

Any number of them may work on one catalog. Killed at any instant, it leaves nothing behind that another one, or itself when it is
started again, does not put in order. On SIGTERM it puts its job back and ends within 2 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from modelhub.errors import CatalogError, ModelhubError
from modelhub.jobs import identity, limits
from modelhub.jobs.heart import Heart, Stopped, patiently
from modelhub.jobs.recovery import recover

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import Job
    from modelhub.jobs.run import Outcome
    from modelhub.plugins import Plugins
    from modelhub.workers import ParsePool

T = TypeVar("T")

LOOK = 0.5
"""Seconds between two looks at an empty queue."""
REAP = 3.0
"""Seconds between two looks for jobs whose owners are dead."""
BUSY_AGAIN = 2.0
"""Seconds after which a job is looked at again that waits for another to do the same."""
PATIENCE = 120.0
"""Seconds for which a catalog may be away before the worker gives up."""


class Worker:
    """``memory``: bytes that a job may take, 0 for no limit; ``idle``: end after so many seconds without a job; ``drain``: end
    when nothing is queued, not even for later; ``events``: tell on stdout what happens."""

    def __init__(self, catalog: Catalog, *, memory: int, idle: float = 20.0, drain: bool = False, events: bool = False) -> None:
        self.catalog = catalog
        self.memory, self.idle, self.drain, self.events = memory, idle, drain, events
        self.owner = identity.owner()
        self.ending = threading.Event()
        self.heart: Heart | None = None
        self.farewell: Callable[[], None] | None = None
        """What is to be done where a job does not hear that it is to stop, and this process ends with it."""
        self._plugins: Plugins | None = None
        self._pool: ParsePool | None = None

    def end(self, *_: object) -> None:
        """Put back what is at work, and end: the handler of SIGTERM."""
        self.ending.set()
        if self.heart is not None:
            self.heart.stop("end")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def tell(self, event: str, **what: Any) -> None:
        """One line for the daemon."""
        if self.events:
            sys.stdout.write(
                json.dumps({"event": event, **{name: value for name, value in what.items() if value is not None}}) + "\n"
            )
            sys.stdout.flush()

    # --- jobs one after another -----------------------------------------------------------------------------------

    def work(self) -> None:
        """Do jobs until there are no more."""
        reaped = -REAP
        since = time.monotonic()
        away: float | None = None
        job: Job | None = None
        while True:
            try:
                if job is None and time.monotonic() - reaped >= REAP:
                    reaped = time.monotonic()
                    recover(self.catalog)
                if self.ending.is_set():
                    break
                job = job or self.catalog.jobs.claim(self.owner)
                if job is not None:
                    job, since, away = self.do(job), time.monotonic(), None
                    continue
                if self.drain and self.catalog.jobs.next_due() is None:
                    break
                away = None
            except CatalogError:
                job = None
                away = away or time.monotonic()
                if time.monotonic() - away > PATIENCE:
                    raise
            if not self.drain and time.monotonic() - since >= self.idle:
                break
            self.ending.wait(LOOK)
        if job is not None:
            self.catalog.jobs.release(job)

    def do(self, job: Job) -> Job | None:
        """One job, from its claim to its end; the next, where one was claimed with that."""
        from modelhub.jobs.run import Busy, Superseded, run

        jobs = self.catalog.jobs
        self.tell("started", job=job.id, id=job.checkpoint, path=_shown(job.source), kind=job.kind, rule=job.rule or None)
        plugins, pool = self._tools()
        try:
            with Heart(jobs, job, farewell=self.farewell) as self.heart:
                if self.ending.is_set():
                    raise Stopped("end")
                outcome = run(self.catalog, job, plugins, heart=self.heart, pool=pool)
        except Stopped as stopped:
            self.close()  # its parsing worker may have been ended with what did not hear
            if stopped.why == "cancel":
                self._settle(lambda: jobs.stop(job, "asked to stop"))
                self.tell("cancelled", job=job.id, id=job.checkpoint, path=_shown(job.source))
            elif stopped.why == "end":
                self._settle(lambda: jobs.release(job))
        except Superseded as reason:
            why = str(reason)
            self._settle(lambda: jobs.stop(job, why))
            self.tell("cancelled", job=job.id, id=job.checkpoint, path=_shown(job.source), reason=why)
        except Busy:
            busy = "another job does the same to the same content: waiting for it"
            self._settle(lambda: jobs.release(job, busy, _later(BUSY_AGAIN)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the job's failure, told as that
            self._failed(job, error)
        else:
            return self._done(job, outcome)
        finally:
            self.heart = None
        return None

    def _done(self, job: Job, outcome: Outcome) -> Job | None:
        jobs = self.catalog.jobs
        after: Job | None = None
        if self.ending.is_set():
            self._settle(lambda: jobs.finish(job, outcome.result, outcome.message))
        else:
            after = self._settle(lambda: jobs.finish_and_claim(job, outcome.result, outcome.message))
        self._emit(outcome)
        model = outcome.model
        self.tell(
            outcome.event or "done",
            job=job.id,
            id=model.id if model else job.checkpoint,
            path=_shown(model.absolute_path if model else job.source),
            result=dict(outcome.result),
        )
        return after

    def _settle(self, write: Callable[[], T]) -> T:
        """Tell the queue how a job ended."""
        return patiently(write, PATIENCE, self.ending.is_set)

    def _emit(self, outcome: Outcome) -> None:
        from modelhub.declared import Event

        if outcome.event and outcome.model and outcome.model.id and self._plugins and self._plugins.observers:
            self._plugins.emit(Event(kind=outcome.event, checkpoint=outcome.model.id, path=outcome.model.absolute_path))

    def _failed(self, job: Job, error: BaseException) -> None:
        message, hint = limits.told(error, self.memory)
        again = None if limits.out_of_memory(error) else limits.again_at(error, job.failures, job.max_attempts)
        self._settle(lambda: self.catalog.jobs.fail(job, message, hint, again))
        if again is None and job.checkpoint and self._plugins and self._plugins.observers:
            from modelhub.declared import Event

            what = {"job": job.id, "error": message}
            self._plugins.emit(Event(kind="failed", checkpoint=job.checkpoint, path=job.source, detail=what))
        self.tell(
            "retry" if again else "failed",
            job=job.id,
            id=job.checkpoint,
            path=_shown(job.source),
            error=message,
            hint=hint or None,
        )

    def _tools(self) -> tuple[Plugins, ParsePool]:
        """The plugins, and a worker that parses; both kept from job to job. The parsing worker is forked now, while this process
        has one thread."""
        if self._plugins is None or self._pool is None:
            from modelhub import plugins
            from modelhub.workers import ParsePool

            if self._plugins is None:
                self._plugins = plugins.get()
                if self.memory:  # beyond what plugins take to be there
                    limits.limit_memory(self.memory)
            self._pool = ParsePool(processes=1, memory=min(self.memory or 2 << 30, 2 << 30))
        self._pool.start()
        return self._plugins, self._pool


def _work_unwatched(worker: Worker, most: int) -> None:
    """Work until the queue is empty, where fewer than ``most`` do so already. Whoever queues something starts one of us: it ends
    at once where all places are taken. So those who leave one look at the queue again, when the place is free."""
    from modelhub.jobs.front import slot

    while not worker.ending.is_set() and worker.catalog.jobs.next_due() is not None:
        handle = slot(worker.catalog, most)
        if handle is None:
            return
        try:
            worker.work()
        finally:
            os.close(handle)


def _later(seconds: float) -> int:
    return time.time_ns() + int(seconds * 1e9)


def _shown(path: str) -> str:
    from modelhub.model import printable

    return printable(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modelhub.jobs.worker")
    parser.add_argument("--parent", type=int, help="die with this process")
    parser.add_argument("--idle", type=float, default=20.0, help="end after so many seconds without a job")
    parser.add_argument("--drain", action="store_true", help="end when nothing is queued any more")
    parser.add_argument("--detached", action="store_true", help="the same, and only as many at a time as [jobs] workers says")
    parser.add_argument("--events", action="store_true", help="tell on stdout what happens, one JSON object a line")
    given = parser.parse_args(arguments)
    if given.parent:
        from modelhub.daemon.worker import die_with

        die_with(given.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from modelhub import config
    from modelhub.catalog import Catalog
    from modelhub.catalog.database import SMALL_CACHE
    from modelhub.jobs.front import see_to_it

    try:
        settings = config.settings().jobs
    except ModelhubError as error:  # whoever edits it is told by the daemon; what is queued can be done all the same
        print(f"modelhub: {error}; going on with the defaults", file=sys.stderr)
        settings = config.Work()
    limits.step_back()
    try:
        with Catalog.open(cache=SMALL_CACHE) as catalog:
            drain = given.drain or given.detached
            worker = Worker(catalog, memory=settings.memory, idle=given.idle, drain=drain, events=given.events)
            signal.signal(signal.SIGTERM, worker.end)
            if given.detached:
                catalog.jobs.drop_old(time.time_ns() - int(settings.keep * 1e9))
            with contextlib.closing(worker):
                if given.detached:
                    worker.farewell = lambda: see_to_it(catalog)
                    _work_unwatched(worker, settings.workers)
                else:
                    worker.work()
    except ModelhubError as error:
        print(f"modelhub: error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # nobody listens any more
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
