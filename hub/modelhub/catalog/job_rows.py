"""A job as a row: the record, how it is written and read, and its log. `modelhub.catalog.jobs` decides what becomes of jobs."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from modelhub.catalog.database import Reader, Row, Writer
from modelhub.catalog.tables import dump, load
from modelhub.errors import ModelNotFound
from modelhub.model import clean, iso, printable

MAX_LOG = 100
"""Lines of log that are kept of a job."""
PRIORITY = {"user": 10, "rule": 0, "scrub": -10}


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its row has it. ``checkpoint``: id of the model it is about, None for one outside the catalog (``version`` is 0
    then) or one that was forgotten. Times in nanoseconds since 1970; ``done`` and ``total`` in bytes of ``stage``. ``made``: what
    is about to get its real name, or has it (see `modelhub.jobs.run`)."""

    key: int
    id: str
    kind: str
    state: str
    priority: int
    checkpoint: str | None
    version: int
    source: str
    spec: Mapping[str, Any]
    action: bytes
    origin: str
    rule: str
    attempts: int
    crashes: int
    max_attempts: int
    not_before: int
    created: int
    started: int | None
    finished: int | None
    owner: str
    lease: int
    cancel: bool
    stage: str
    done: int
    total: int
    output: str
    made: Mapping[str, Any]
    result: Mapping[str, Any]
    error: str
    hint: str

    @property
    def foreground(self) -> bool:
        """Whether somebody waits for it at a terminal: if that process dies, nobody else runs it."""
        return bool(self.spec.get("foreground"))

    @property
    def failures(self) -> int:
        """How often it was tried and failed, its process living on."""
        return max(0, self.attempts - self.crashes)

    def to_json(self) -> dict[str, Any]:
        """What ``modelhub jobs --json`` prints."""
        return {
            "id": self.id,
            "state": self.state,
            "kind": self.kind,
            "model": self.checkpoint,
            "source": printable(self.source),
            "output": printable(self.output) or None,
            "to": self.spec.get("to"),
            "level": self.spec.get("level"),
            "origin": self.origin,
            "rule": self.rule or None,
            "priority": self.priority,
            "stage": self.stage or None,
            "done": self.done,
            "total": self.total,
            "attempts": self.attempts,
            "crashes": self.crashes,
            "created": iso(self.created),
            "started": None if self.started is None else iso(self.started),
            "finished": None if self.finished is None else iso(self.finished),
            "again": iso(self.not_before) if self.state == "queued" and self.not_before > self.created else None,
            "owner": self.owner or None,
            "cancelling": self.cancel and self.state == "running",
            "error": self.error or None,
            "hint": self.hint or None,
            "result": dict(self.result) if self.result and self.state == "done" else None,
        }


class NewJob(NamedTuple):
    """A job to be added. ``checkpoint`` is the key (not the id) of the model's row; ``source`` its absolute path."""

    kind: str
    source: str
    spec: Mapping[str, Any]
    checkpoint: int | None = None
    version: int = 0
    origin: str = "rule"
    rule: str = ""
    priority: int | None = None
    max_attempts: int = 1


def action_of(kind: str, spec: Mapping[str, Any]) -> bytes:
    """What tells work apart that would come to the same: 16 bytes over the kind and what shapes the result. Where an output goes,
    and how fast, is no part of it."""
    if kind == "convert":
        options = spec.get("options") or {}
        what: Any = [
            kind,
            str(spec.get("to", "")).lower(),
            int(options.get("max_shard_size") or 0),
            bool(options.get("skip_unsupported")),
            dict(options.get("extra") or {}),
        ]
    else:
        what = [kind, spec.get("level") or ""]
    return sha256(json.dumps(what, sort_keys=True).encode()).digest()[:16]


COLUMNS = (
    "j.key,j.id,j.kind,j.state,j.priority,c.id,j.version,j.source,j.spec,j.action,j.origin,j.rule,j.attempts,j.crashes,"
    "j.max_attempts,j.not_before,j.created,j.started,j.finished,j.owner,j.lease,j.cancel,j.stage,j.done,j.total,j.output,j.made,"
    "j.result,j.error,j.hint"
)
FROM = "FROM job j LEFT JOIN checkpoint c ON c.key=j.checkpoint"
_INSERT = (
    "key,id,kind,state,priority,checkpoint,version,source,spec,action,origin,rule,max_attempts,created,output,"
    "owner,lease,attempts,started"
)


def read_job(row: Row) -> Job:
    (
        key, id, kind, state, priority, checkpoint, version, source, spec, action, origin, rule, attempts, crashes, most,
        not_before, created, started, finished, owner, lease, cancel, stage, done, total, output, made, result, error, hint,
    ) = row  # fmt: skip
    return Job(
        key, id, kind, state, priority, checkpoint, version, os.fsdecode(bytes(source)), load(spec), bytes(action), origin, rule,
        attempts, crashes, most, not_before, created, started, finished, owner, lease, bool(cancel), stage, done, total,
        os.fsdecode(bytes(output)), load(made) if made else {}, load(result) if result else {}, error, hint,
    )  # fmt: skip


def add_many(writer: Writer, jobs: Sequence[NewJob]) -> list[str]:
    """Add jobs inside a transaction of the caller's; their ids, in the order of ``jobs``."""
    return [str(row[1]) for row in insert(writer, jobs)]


def insert(writer: Writer, jobs: Sequence[NewJob], owner: str = "", lease: int = 0) -> list[Row]:
    now = time.time_ns()
    rows = []
    actions: dict[int, bytes] = {}
    texts: dict[int, str] = {}
    for job in jobs:
        if id(job.spec) not in actions:  # a rule adds many of the same
            actions[id(job.spec)] = action_of(job.kind, job.spec)
            texts[id(job.spec)] = clean(dump(dict(job.spec)))
        priority = PRIORITY[job.origin] if job.priority is None else job.priority
        rows.append(
            (
                writer.next_key("job"),
                secrets.token_hex(4),
                job.kind,
                "running" if owner else "queued",
                priority,
                job.checkpoint,
                job.version,
                os.fsencode(job.source),
                texts[id(job.spec)],
                actions[id(job.spec)],
                job.origin,
                clean(job.rule),
                max(1, job.max_attempts),
                now,
                os.fsencode(str(job.spec.get("output") or "")),
                owner,
                lease,
                1 if owner else 0,
                now if owner else None,
            )
        )
    taken = {id for (id,) in writer.rows_in("SELECT id FROM job WHERE id IN (??)", [row[1] for row in rows])}
    if taken or len({row[1] for row in rows}) < len(rows):
        rows = [(row[0], secrets.token_hex(8), *row[2:]) for row in rows]
    writer.insert("job", _INSERT, rows)
    return rows


def one(reader: Reader, key: int) -> Job:
    row = reader.row(f"SELECT {COLUMNS} {FROM} WHERE j.key=?", (key,))
    if row is None:
        raise ModelNotFound("the job is gone", "modelhub jobs lists those that are known")
    return read_job(row)


def log(writer: Writer, job: int, now: int, level: str, message: str) -> None:
    writer.insert("job_log", "key,job,at,level,message", [(writer.next_key("job_log"), job, now, level, clean(message)[:2000])])
    last = writer.value("SELECT key FROM job_log WHERE job=? ORDER BY key DESC LIMIT 1 OFFSET ?", (job, MAX_LOG))
    if last is not None:
        writer.run("DELETE FROM job_log WHERE job=? AND key<=?", (job, last))
