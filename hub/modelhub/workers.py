"""Worker processes that run plugin code on untrusted bytes, with limits on memory and time.

A worker takes batches of names, does detection and reading (`modelhub.detect`), and sends back the `Found` records of the batch
in one message. Before it lets plugin code near a file it writes the file's name into memory that it shares with its parent; so
when a worker crashes, or stands still for too long and is killed, the culprit is known: that file is indexed as invalid with a
finding, and the rest of the batch is done by a new worker. This module knows nothing of formats or the catalog.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from modelhub.detect import Blame, Inspection, Mark, inspect_listing, inspect_path
from modelhub.errors import ModelhubError, PluginError
from modelhub.files import Listing
from modelhub.found import Found
from modelhub.process import Died, Worker, start_worker
from modelhub.types import Finding

BATCH = 64
"""Names in one batch: enough that messages cost nothing, few enough that a crash repeats little."""
SMALL_MESSAGE = 32 * 1024
"""A message up to this size fits the socket's buffer, and may be sent to a worker that is still busy."""
SECONDS = 30.0
START_SECONDS = 60.0
"""How long a worker may take to start: a cold interpreter on a slow disk."""
CRASHES = 2
"""A crash is put down to a file when it happens there this often: once may be the machine's fault. A hang is at once."""

T = TypeVar("T")


def parse_seconds() -> float:
    """How long a worker may stand still on one file: `SECONDS`, or what ``MODELHUB_PARSE_SECONDS`` says."""
    try:
        return float(os.environ.get("MODELHUB_PARSE_SECONDS", ""))
    except ValueError:
        return SECONDS


class Task(NamedTuple):
    """One directory to look at, as the scanner listed it: its files' names and sizes, and its sub-directories. ``only``: see
    `modelhub.detect.inspect_listing`."""

    directory: str
    names: tuple[tuple[str, int], ...]
    directories: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What was found in one directory, or in a part of a big one: ``last`` marks the final part, which alone has the ``unknown``
    names (files that no format knows) and the ``problems`` (files that could not be read; plugins that failed)."""

    directory: str
    found: tuple[Found, ...]
    unknown: tuple[str, ...] = ()
    problems: tuple[Finding, ...] = ()
    last: bool = True


@dataclass(slots=True)
class _Job:
    """A task on its way, perhaps in parts."""

    number: int
    task: Task
    parts: int = 0
    split: bool = False
    complete: bool = False  # every part has been handed out
    seen: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)


class _Part(NamedTuple):
    """What a worker does in one go: a whole directory, or some names of it."""

    job: _Job
    only: tuple[str, ...] | None
    blamed: frozenset[Blame] = frozenset()


@dataclass(slots=True)
class _Call:
    """A function to run in a worker."""

    answer: list[tuple[bool, Any]] = field(default_factory=list)


_Batch = list[_Part]


@dataclass(slots=True)
class _Slot:
    """A worker and what it has been given: at most one thing in hand and one queued behind it."""

    worker: Worker
    given: deque[_Batch | _Call] = field(default_factory=deque)
    listings: set[int] = field(default_factory=set)
    progress: int = -1
    since: float = 0.0
    limit: float = 0.0


class ParsePool:
    """A pool of parsing workers. A context manager: on leaving, and whatever happens, no process stays behind.

    ``memory``: bytes that a worker may take beyond what it starts with. ``seconds``: how long a worker may stand still on one
    file (default: see `parse_seconds`). Not to be shared by threads.
    """

    def __init__(self, processes: int | None = None, memory: int = 2 << 30, seconds: float | None = None) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self.memory = memory
        self.seconds = parse_seconds() if seconds is None else seconds
        self._slots: list[_Slot] = []
        self._numbers = 0
        self._crashes: Counter[Blame] = Counter()
        self._silent_deaths = 0

    def __enter__(self) -> ParsePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the workers at once."""
        while self._slots:
            self._slots.pop().worker.kill()

    def start(self) -> None:
        """Have one worker ready: before threads begin, after which starting one is slow (no fork)."""
        if not self._slots:
            self._new_slot()

    # --- what it can do -------------------------------------------------------------------------------------------

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Look at directories; results come as they are made, in any order. ``tasks`` is taken from only as fast as results are.

        Leaving the iterator early ends the workers that are busy with it."""
        batches = self._batches(tasks)
        again: deque[_Batch] = deque()
        exhausted = False
        try:
            while True:
                while not exhausted or again:
                    slot = self._free_slot()
                    if slot is None:
                        break
                    batch = again.popleft() if again else next(batches, None)
                    if batch is None:
                        exhausted = True
                        break
                    self._give(slot, batch)
                if not any(slot.given for slot in self._slots):
                    if exhausted and not again:
                        return
                    continue
                for slot in self._ready():
                    done, failed = self._receive(slot)
                    again.extend(failed)
                    for part, inspection in done:
                        yield self._result(part, inspection)
        finally:
            for slot in [slot for slot in self._slots if slot.given]:
                slot.worker.kill()
                self._slots.remove(slot)

    def inspect_path(self, path: str) -> Found:
        """The checkpoint at ``path`` (see `modelhub.detect.inspect_path`), read in a worker. A crash or hang there is a
        `PluginError` that names the culprit."""
        found: Found = self.call(inspect_path_here, os.path.abspath(path))
        return found

    def call(self, function: Callable[..., T], *args: Any, seconds: float | None = None) -> T:
        """Run ``function(*args)`` in a worker under the pool's limits (``seconds`` replaces the pool's), and return what it
        returns.

        The function is one of a module, and all that goes in and out can be pickled. What it raises is raised here where it is a
        `ModelhubError`, else as a `PluginError`; a crash or a hang is a `PluginError` too."""
        limit = self.seconds if seconds is None else seconds
        payload = pickle.dumps(("call", limit, (function, args)), pickle.HIGHEST_PROTOCOL)
        call = _Call()
        slot = next((slot for slot in self._slots if not slot.given), None) or self._new_slot()
        try:
            slot.given.append(call)
            slot.since, slot.progress, slot.limit = time.monotonic(), slot.worker.progress(), limit
            self._send(slot, payload)
            while not call.answer:
                for ready in self._ready([slot]):
                    self._receive(ready)
        except BaseException:
            slot.worker.kill()
            if slot in self._slots:
                self._slots.remove(slot)
            raise
        ok, value = call.answer[0]
        if not ok:
            raise value
        return value  # type: ignore[no-any-return]

    # --- tasks into batches ---------------------------------------------------------------------------------------

    def _batches(self, tasks: Iterable[Task]) -> Iterator[_Batch]:
        """Many small directories make one batch; a big one makes many."""
        batch: _Batch = []
        room = BATCH
        for task in tasks:
            self._numbers += 1
            job = _Job(self._numbers, task)
            names = task.only if task.only is not None else task.names
            if len(names) <= BATCH:
                job.parts, job.complete = 1, True
                batch.append(_Part(job, task.only))
                room -= len(names) + 1
                if room <= 0:
                    yield batch
                    batch, room = [], BATCH
                continue
            if batch:
                yield batch
                batch, room = [], BATCH
            wanted = task.only if task.only is not None else tuple(name for name, _ in task.names)
            job.split = True
            for start in range(0, len(wanted), BATCH):
                job.parts += 1
                job.complete = start + BATCH >= len(wanted)
                yield [_Part(job, wanted[start : start + BATCH])]
        if batch:
            yield batch

    def _result(self, part: _Part, inspection: Inspection) -> Result:
        job = part.job
        job.parts -= 1
        last = job.complete and not job.parts
        if not job.split:
            found, unknown, problems = inspection.found, inspection.unknown, inspection.problems
        else:
            # A group that lies across parts is found by each of them.
            found = [item for item in inspection.found if item.path not in job.seen]
            job.seen.update(item.path for item in found)
            start = len(job.task.directory.rstrip("/")) + 1
            job.owned.update(path[start:] for item in found if len(item.files) > 1 for path in item.files)
            job.unknown += inspection.unknown
            job.problems += inspection.problems
            unknown = [name for name in job.unknown if name not in job.owned] if last else []
            problems = list(dict.fromkeys(job.problems)) if last else []
        return Result(job.task.directory, tuple(found), tuple(unknown), tuple(problems), last)

    # --- workers --------------------------------------------------------------------------------------------------

    def _new_slot(self) -> _Slot:
        slot = _Slot(start_worker(self.memory, self.seconds))
        self._slots.append(slot)
        return slot

    def _free_slot(self) -> _Slot | None:
        """A worker that can take a batch: an idle one, a new one, or one that has nothing queued behind what it does."""
        idle = next((slot for slot in self._slots if not slot.given), None)
        if idle:
            return idle
        if len(self._slots) < self.processes:
            return self._new_slot()
        return next((slot for slot in self._slots if len(slot.given) < 2), None)

    def _give(self, slot: _Slot, batch: _Batch) -> None:
        listings = {part.job.number: part.job.task for part in batch if part.job.number not in slot.listings}
        parts = [(part.job.number, part.only, part.blamed) for part in batch]
        # A worker keeps the listings of directories that come in parts, and no others.
        keep = {part.job.number for part in batch if part.job.split}
        message = ("inspect", self.seconds, ({number: task[:3] for number, task in listings.items()}, parts, keep))
        payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if len(payload) > SMALL_MESSAGE and slot.given:
            slot.worker.later.append(payload)
        else:
            self._send(slot, payload)
        slot.listings = keep
        if not slot.given:
            slot.since, slot.progress, slot.limit = time.monotonic(), slot.worker.progress(), self.seconds
        slot.given.append(batch)

    def _send(self, slot: _Slot, payload: bytes) -> None:
        # A worker that died is noticed when its answer is due.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            slot.worker.send(payload)

    def _ready(self, slots: list[_Slot] | None = None) -> list[_Slot]:
        """The slots with an answer, a death or a hang to deal with; waits up to a fraction of a second."""
        busy = {slot.worker.connection: slot for slot in slots or self._slots if slot.given}
        waited = wait(list(busy), timeout=min(0.5, self.seconds / 4))
        ready = [slot for connection, slot in busy.items() if connection in waited]
        now = time.monotonic()
        for slot in busy.values():
            progress = slot.worker.progress()
            if progress != slot.progress:
                slot.progress, slot.since = progress, now
            elif slot not in ready and now - slot.since > (slot.limit if progress else START_SECONDS):
                slot.worker.hung, slot.worker.seconds = True, slot.limit
                slot.worker.kill()
                ready.append(slot)
        return ready

    def _receive(self, slot: _Slot) -> tuple[list[tuple[_Part, Inspection]], list[_Batch]]:
        """The inspections of the batch in hand; or, after a death, the batches to do again."""
        try:
            if slot.worker.hung:
                raise Died
            answer = slot.worker.receive()
        except Died:
            return [], self._bury(slot)
        given = slot.given.popleft()
        slot.since = time.monotonic()
        self._silent_deaths = 0
        if slot.worker.later:
            self._send(slot, slot.worker.later.popleft())
        if isinstance(given, _Call):
            given.answer.append(answer)
            return [], []
        ok, value = answer
        if not ok:  # nothing that a file does should lead here
            return [(part, Inspection(problems=[_problem(part, value)])) for part in given], []
        parts = zip(given, value, strict=True)
        return [(part, Inspection([Found(*fields) for fields in found], *rest)) for part, (found, *rest) in parts], []

    def _bury(self, slot: _Slot) -> list[_Batch]:
        """A worker is dead: say what it died of, and return what it had been given."""
        self._slots.remove(slot)
        why = slot.worker.kill()
        blame = slot.worker.in_hand()
        given = slot.given
        head = given[0] if given else None
        if isinstance(head, _Call):
            what = f" in the plugin of {blame.format} at {blame.path}" if blame else ""
            head.answer.append((False, PluginError(f"a worker process {why}{what}", "the rest of the work is not touched")))
            return []
        batches: list[_Batch] = [batch for batch in given if not isinstance(batch, _Call)]
        if blame is None:
            self._silent_deaths += 1
            if self._silent_deaths > 3:
                raise PluginError(f"parsing workers keep dying at their start (the last one {why})", "try `modelhub plugins`")
            return batches
        self._crashes[blame] += 1
        if slot.worker.hung or self._crashes[blame] >= CRASHES:
            batches[0] = [part._replace(blamed=part.blamed | {blame}) for part in batches[0]]
        return batches


def _problem(part: _Part, error: ModelhubError) -> Finding:
    return Finding("plugin", "error", f"{part.job.task.directory} could not be looked at: {error}", file=part.job.task.directory)


def inspect_path_here(path: str) -> Found:
    """What `ParsePool.inspect_path` runs in the worker."""
    from modelhub import files, plugins, process

    formats = plugins.get().formats
    with contextlib.suppress(OSError):
        found = inspect_path(path, formats, mark=process.mark, listed=files.listing_again)
        if found.state == "ready" and found.size == sum(map(os.path.getsize, found.files)):
            return found
    return inspect_path(path, formats, mark=process.mark)  # a remembered listing may have old sizes


def serve_inspect(
    keep: dict[int, Listing],
    listings: Mapping[int, tuple[Any, ...]],
    parts: list[tuple[int, tuple[str, ...] | None, frozenset[Blame]]],
    keep_next: Collection[int],
    mark: Mark,
) -> list[tuple[list[tuple[Any, ...]], list[str], list[Finding]]]:
    """What a worker does with a batch. ``keep`` holds the listings of directories that come in parts from one batch to the
    next."""
    from modelhub import plugins

    formats = plugins.get().formats
    for number, (directory, names, directories) in listings.items():
        keep[number] = Listing(directory, dict(names), directories)
    answer = []
    for number, only, blamed in parts:
        seen = inspect_listing(keep[number], formats, only=only, blamed=blamed, mark=mark)
        answer.append(([_as_tuple(found) for found in seen.found], seen.unknown, seen.problems))
    for number in [number for number in keep if number not in keep_next]:
        del keep[number]
    return answer


_as_tuple = attrgetter(*Found.__slots__)
"""A record's fields, which pickle in a third of the time that the record takes."""
