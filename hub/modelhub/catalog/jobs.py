"""The queue of jobs as rows: added, claimed, kept alive, finished, taken up again. Runs none of them, and opens no file.

A job is queued, running, done, failed or cancelled. Who runs one holds its lease and must `Jobs.beat`; every write of a runner
names it as the owner, so that one who was taken for dead changes nothing any more.
"""

from __future__ import annotations

import builtins
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from modelhub.catalog import job_rows
from modelhub.catalog.database import Database, Reader, Writer
from modelhub.catalog.job_rows import COLUMNS, FROM, Job, NewJob, action_of, add_many
from modelhub.catalog.tables import dump, load
from modelhub.errors import AmbiguousModel, ModelhubError, ModelNotFound
from modelhub.model import clean, iso, printable

STATES = ("queued", "running", "done", "failed", "cancelled")
ENDED = ("done", "failed", "cancelled")
LEASE = 30.0
"""Seconds for which a beat holds a job. All that other hosts know of its owner: clocks must agree this far."""
MAX_CRASHES = 20
"""A job whose process died so often is not tried again."""

Beat = Literal["ok", "cancel", "lost"]
IsAlive = Callable[[str], "bool | None"]
"""Whether the process that an owner names is alive; None where only the lease can tell."""


__all__ = ["STATES", "Job", "Jobs", "NewJob", "action_of", "add_many"]
_OURS = "key=? AND owner=? AND state='running'"


class Jobs:
    """The queue of one catalog. Every method is one short transaction; CatalogError where the catalog cannot be had."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- in and out -----------------------------------------------------------------------------------------------

    def add(
        self,
        kind: str,
        source: str,
        spec: Mapping[str, Any],
        *,
        checkpoint: str | None = None,
        version: int = 0,
        origin: str = "user",
        rule: str = "",
        priority: int | None = None,
        max_attempts: int = 1,
        owner: str = "",
    ) -> Job:
        """Add a job. ``checkpoint``: the id of the model that it is about. With ``owner`` it is running from the start: somebody
        waits for it, and it is nobody else's if that process dies."""
        now = time.time_ns()
        if owner:
            spec = {**spec, "foreground": True}
        with self.database.write() as writer:
            key = None if checkpoint is None else writer.value("SELECT key FROM checkpoint WHERE id=?", (checkpoint,))
            new = NewJob(kind, source, spec, key, version, origin, rule, priority, max_attempts)
            (row,) = job_rows.insert(writer, [new], owner, now + int(LEASE * 1e9) if owner else 0)
            if owner:
                job_rows.log(writer, row[0], now, "info", f"begun by {owner}")
            return job_rows.one(writer, row[0])

    def add_many(self, writer: Writer, jobs: Sequence[NewJob]) -> builtins.list[str]:
        """The same as the function: for those who have a transaction open."""
        return add_many(writer, jobs)

    def get(self, id: str) -> Job:
        """The job with this id, or the only one whose id begins so. ModelNotFound, AmbiguousModel."""
        prefix = id.strip().lower()
        with self.database.read() as reader:
            rows = reader.rows(f"SELECT {COLUMNS} {FROM} WHERE j.id>=? AND j.id<? ORDER BY j.id LIMIT 6", (prefix, prefix + "g"))
        found = [job_rows.read_job(row) for row in rows]
        exact = [job for job in found if job.id == prefix]
        if exact or (len(found) == 1 and prefix):
            return (exact or found)[0]
        if found and prefix:
            shown = ", ".join(job.id for job in found[:5])
            raise AmbiguousModel(f"'{printable(id)}' could be several jobs: {shown}", "give more of the id")
        raise ModelNotFound(f"there is no job '{printable(id)}'", "modelhub jobs lists them")

    def list(self, states: Sequence[str] | None = None, limit: int | None = None) -> builtins.list[Job]:
        """Jobs: those at work first, then those waiting in the order in which they will be taken, then the others, the latest
        first."""
        wanted = STATES if states is None else tuple(states)
        ended = [state for state in ENDED if state in wanted]
        # Three questions of keys alone, which indexes answer.
        parts: builtins.list[tuple[str, Sequence[str]]] = []
        if "running" in wanted:
            parts.append(("state='running' ORDER BY created,key", ()))
        if "queued" in wanted:
            parts.append(("state='queued' ORDER BY priority DESC,created,key", ()))
        if ended:
            some = "" if len(ended) == len(ENDED) else f" AND state IN ({','.join('?' * len(ended))})"
            parts.append((f"finished IS NOT NULL{some} ORDER BY finished DESC,key DESC", ended if some else ()))
        keys: builtins.list[int] = []
        with self.database.read() as reader:
            for where, values in parts:
                room = (1 << 62) if limit is None else limit - len(keys)
                keys += [key for (key,) in reader.rows(f"SELECT key FROM job WHERE {where} LIMIT ?", (*values, room))]
            rows = reader.rows_in(f"SELECT {COLUMNS} {FROM} WHERE j.key IN (??)", keys)
        found = {row[0]: job_rows.read_job(row) for row in rows}
        return [found[key] for key in keys]

    def counts(self) -> dict[str, int]:
        """State -> how many jobs have it."""
        with self.database.read() as reader:
            found: dict[str, int] = dict(reader.rows("SELECT state,count(*) FROM job GROUP BY state"))
        return {state: int(found.get(state, 0)) for state in STATES}

    def waiting(self) -> int:
        """How many jobs want hands (of very many, some): those that could be claimed now, and those at work. Not those of people
        at a terminal, unless their process seems to be dead."""
        now = time.time_ns()
        with self.database.read() as reader:
            queued = len(reader.rows("SELECT key FROM job WHERE state='queued' AND not_before<=? LIMIT 100", (now,)))
            running = reader.rows("SELECT spec,lease FROM job WHERE state='running'")
        return queued + sum(1 for spec, lease in running if lease < now or not load(spec).get("foreground"))

    def next_due(self) -> int | None:
        """When the next queued job may be claimed, in nanoseconds since 1970; None where none is queued."""
        with self.database.read() as reader:
            found = reader.value("SELECT min(not_before) FROM job WHERE state='queued'")
        return None if found is None else int(found)

    def active_outputs(self) -> set[bytes]:
        """Where queued and running jobs will write, absolute; as far as that is known yet. With every file of those that are
        giving their outputs their names: shards are called otherwise."""
        with self.database.read() as reader:
            rows = reader.rows("SELECT output,made FROM job WHERE state IN ('queued','running') AND kind='convert'")
        files = [os.fsencode(file["path"]) for _, made in rows if made for file in load(made).get("files", ())]
        return {bytes(output) for output, _ in rows if output} | set(files)

    def drop_old(self, before: int) -> int:
        """Forget the jobs that ended before then (nanoseconds since 1970); how many."""
        with self.database.read() as reader:
            if not reader.value(
                "SELECT count(*) FROM job WHERE state IN ('done','failed','cancelled') AND finished<?", (before,)
            ):
                return 0
        with self.database.write() as writer:
            return writer.run("DELETE FROM job WHERE state IN ('done','failed','cancelled') AND finished<?", (before,))

    # --- a runner's side ------------------------------------------------------------------------------------------

    def claim(self, owner: str, lease_seconds: float = LEASE) -> Job | None:
        """Take the job that is next: the highest priority, then the oldest, of those whose time has come. None where there is
        none."""
        with self.database.read() as reader:  # a write is dear where there is nothing to do
            if _next(reader, time.time_ns()) is None:
                return None
        with self.database.write() as writer:
            return _claim(writer, owner, lease_seconds)

    def beat(self, job: Job, owner: str, stage: str, done: int, total: int) -> Beat:
        """Say that the job is being worked on, and how far it is. "cancel": somebody wants it to stop; "lost": it is not ours any
        more."""
        with self.database.write() as writer:
            kept = writer.run(
                f"UPDATE job SET lease=?,stage=?,done=?,total=? WHERE {_OURS}",
                (time.time_ns() + int(LEASE * 1e9), clean(stage), done, total, job.key, owner),
            )
            if not kept:
                return "lost"
            return "cancel" if writer.value("SELECT cancel FROM job WHERE key=?", (job.key,)) else "ok"

    def asked(self, job: Job, owner: str) -> Beat:
        """The same answer, without saying anything: cheaper."""
        with self.database.read() as reader:
            row = reader.row(f"SELECT cancel FROM job WHERE {_OURS}", (job.key, owner))
        return "lost" if row is None else "cancel" if row[0] else "ok"

    def output(self, job: Job, path: str) -> bool:
        """Write down where the output will go, before anything is written there. False where the job is not its owner's any
        more, and nothing must be."""
        with self.database.write() as writer:
            return writer.run(f"UPDATE job SET output=? WHERE {_OURS}", (os.fsencode(path), job.key, job.owner)) > 0

    def made(self, job: Job, made: Mapping[str, Any]) -> bool:
        """Write down what is about to get its real name. False as above. It is on the disk before anything has its name."""
        with self.database.write(durable=True) as writer:
            return writer.run(f"UPDATE job SET made=? WHERE {_OURS}", (json.dumps(made), job.key, job.owner)) > 0

    def first_of_its_kind(self, job: Job, content: bytes) -> bool:
        """Whether nobody else is doing the same to the same content (by its SHA-256) now; from here on, we are. False: another
        running job is."""
        note = dump({"content": content.hex()})
        with self.database.write() as writer:
            others = writer.rows(
                "SELECT key FROM job WHERE state='running' AND action=? AND result=? AND key<>?", (job.action, note, job.key)
            )
            if not others:
                writer.run(f"UPDATE job SET result=? WHERE {_OURS}", (note, job.key, job.owner))
            return not others

    def finish(self, job: Job, result: Mapping[str, Any], message: str = "done") -> bool:
        """It is done. False where it was not ours any more."""
        with self.database.write() as writer:
            return _finish(writer, job, result, message)

    def finish_and_claim(self, job: Job, result: Mapping[str, Any], message: str, lease_seconds: float = LEASE) -> Job | None:
        """`finish`, and `claim` the next in the same transaction: for many small jobs."""
        with self.database.write() as writer:
            _finish(writer, job, result, message)
            return _claim(writer, job.owner, lease_seconds)

    def fail(self, job: Job, error: str, hint: str = "", again_at: int | None = None) -> bool:
        """It failed; with ``again_at`` (nanoseconds since 1970) it is queued again for then. False where it was not ours."""
        now = time.time_ns()
        error, hint = clean(error), clean(hint)
        with self.database.write() as writer:
            if again_at is None:
                sql = "state='failed',finished=?"
                line = f"failed: {error}"
            else:
                sql = "state='queued',not_before=?"
                line = f"failed, to be tried again at {iso(again_at)}: {error}"
            done = writer.run(
                f"UPDATE job SET {sql},error=?,hint=?,result='',stage='',owner='',lease=0 WHERE {_OURS}",
                (now if again_at is None else again_at, error, hint, job.key, job.owner),
            )
            if done:
                job_rows.log(writer, job.key, now, "error" if again_at is None else "warning", line)
            return done > 0

    def stop(self, job: Job, reason: str) -> bool:
        """End it as cancelled, and say why. False where it was not ours."""
        now = time.time_ns()
        with self.database.write() as writer:
            done = writer.run(
                "UPDATE job SET state='cancelled',finished=?,error=?,hint='',result='',stage='',owner='',lease=0,cancel=0 "
                f"WHERE {_OURS}",
                (now, clean(reason), job.key, job.owner),
            )
            if done:
                job_rows.log(writer, job.key, now, "info", f"cancelled: {reason}")
            return done > 0

    def release(self, job: Job, reason: str = "put back", not_before: int = 0) -> bool:
        """Put it back for somebody else, as if it had not been begun. False where it was not ours."""
        now = time.time_ns()
        with self.database.write() as writer:
            # What somebody wanted stopped while it was being put back is stopped.
            done = writer.run(
                "UPDATE job SET state=CASE WHEN cancel=1 THEN 'cancelled' ELSE 'queued' END,"
                "finished=CASE WHEN cancel=1 THEN CAST(? AS BIGINT) ELSE NULL END,"
                "attempts=attempts-1,not_before=?,result='',stage='',done=0,owner='',lease=0,cancel=0 "
                f"WHERE {_OURS}",
                (now, not_before, job.key, job.owner),
            )
            if done:
                job_rows.log(writer, job.key, now, "info", reason)
            return done > 0

    # --- everybody's side -----------------------------------------------------------------------------------------

    def cancel(self, id: str) -> Job:
        """Have a job stopped: one that waits is cancelled at once, one at work is told so. ModelhubError where it is over."""
        key = self.get(id).key
        now = time.time_ns()
        with self.database.write() as writer:
            if writer.run("UPDATE job SET state='cancelled',finished=?,error='' WHERE key=? AND state='queued'", (now, key)):
                job_rows.log(writer, key, now, "info", "cancelled while it waited")
            elif writer.run("UPDATE job SET cancel=1 WHERE key=? AND state='running'", (key,)):
                job_rows.log(writer, key, now, "info", "asked to stop")
            else:
                job = job_rows.one(writer, key)
                raise ModelhubError(f"job {job.id} is {job.state} already", "there is nothing to cancel")
            return job_rows.one(writer, key)

    def retry(self, id: str) -> Job:
        """Queue a failed or cancelled job again, with a clean sheet; one that waits for another try is due now."""
        key = self.get(id).key
        now = time.time_ns()
        with self.database.write() as writer:
            job = job_rows.one(writer, key)
            if job.state in ("done", "running"):
                raise ModelhubError(
                    f"job {job.id} is {job.state}", "failed and cancelled jobs can be tried again" if job.state == "done" else ""
                )
            spec = {name: value for name, value in job.spec.items() if name != "foreground"}
            writer.run(
                "UPDATE job SET state='queued',attempts=0,crashes=0,not_before=0,finished=NULL,error='',hint='',cancel=0,done=0,"
                "result='',spec=? WHERE key=?",
                (clean(dump(spec)), key),
            )
            job_rows.log(writer, key, now, "info", "to be tried again")
            return job_rows.one(writer, key)

    def reap(self, is_alive: IsAlive) -> builtins.list[Job]:
        """Take the jobs of dead owners away from them: they wait again, or are failed or cancelled as the case may be. Returns
        them as they are now; beside their ``output`` may lie what they left."""
        now = time.time_ns()
        with self.database.read() as reader:
            running = [job_rows.read_job(row) for row in reader.rows(f"SELECT {COLUMNS} {FROM} WHERE j.state='running'")]
        dead = []
        for job in running:
            alive = is_alive(job.owner)
            if alive is False or (alive is None and job.lease < now):
                dead.append(job)
        if not dead:
            return []
        with self.database.write() as writer:
            return [job_rows.one(writer, job.key) for job in dead if _bury(writer, job, now)]

    def log(self, job: Job, level: str, message: str) -> None:
        """Add a line to the job's log: info, warning or error."""
        with self.database.write() as writer:
            job_rows.log(writer, job.key, time.time_ns(), level, message)

    def logs(self, job: Job) -> builtins.list[dict[str, Any]]:
        """The job's log, oldest first: ``{at, level, message}``."""
        with self.database.read() as reader:
            rows = reader.rows("SELECT at,level,message FROM job_log WHERE job=? ORDER BY key", (job.key,))
        return [{"at": iso(at), "level": level, "message": message} for at, level, message in rows]


def _next(reader: Reader, now: int) -> int | None:
    """The key of the job that is next. Asked in two steps, each of which one walk along an index answers."""
    priority = reader.value(
        "SELECT priority FROM job WHERE state='queued' AND not_before<=? ORDER BY priority DESC LIMIT 1", (now,)
    )
    if priority is None:
        return None
    found = reader.value(
        "SELECT key FROM job WHERE state='queued' AND priority=? AND not_before<=? ORDER BY created,key LIMIT 1", (priority, now)
    )
    return None if found is None else int(found)


def _claim(writer: Writer, owner: str, lease_seconds: float) -> Job | None:
    now = time.time_ns()
    key = _next(writer, now)
    if key is None:
        return None
    writer.run(
        "UPDATE job SET state='running',owner=?,lease=?,attempts=attempts+1,started=?,cancel=0,stage='',done=0,total=0,result='' "
        "WHERE key=?",
        (owner, now + int(lease_seconds * 1e9), now, key),
    )
    job_rows.log(writer, key, now, "info", f"begun by {owner}")
    return job_rows.one(writer, key)


def _finish(writer: Writer, job: Job, result: Mapping[str, Any], message: str) -> bool:
    now = time.time_ns()
    done = writer.run(
        "UPDATE job SET state='done',finished=?,result=?,error='',hint='',stage='',"
        f"done=CASE WHEN total>done THEN total ELSE done END,owner='',lease=0,cancel=0 WHERE {_OURS}",
        (now, clean(dump(dict(result))), job.key, job.owner),
    )
    if done:
        job_rows.log(writer, job.key, now, "info", message)
    return done > 0


def _bury(writer: Writer, job: Job, now: int) -> bool:
    """What becomes of a job whose process died."""
    crashes = job.crashes + 1
    pid = job.owner.split(":")[1] if job.owner.count(":") >= 2 else job.owner
    error, hint, again = "", "", 0
    if job.cancel:
        state, level, line = "cancelled", "info", f"cancelled: its process ({pid}) is gone"
    elif job.foreground:
        state, level = "failed", "error"
        error, hint = f"the process that ran it ({pid}) died", f"modelhub jobs retry {job.id} runs it in the background"
        line = error
    elif crashes >= MAX_CRASHES:
        state, level = "failed", "error"
        error = f"its process died {crashes} times"
        hint = f"out of memory? `[jobs] memory` limits it; modelhub jobs retry {job.id} tries again"
        line = f"{error}: it is given up"
    else:
        wait = min(60.0, 0.5 * 1.5**crashes)
        again = now + int(wait * 1e9)
        state, level, line = "queued", "warning", f"its process ({pid}) died; to be taken up again in {wait:.1f} s"
    # Not if it was claimed anew since we looked, or its owner on another host has beaten after all.
    done = writer.run(
        "UPDATE job SET state=?,finished=?,crashes=?,not_before=?,error=?,hint=?,owner='',lease=0,cancel=0,stage='',result='' "
        f"WHERE {_OURS} AND lease=?",
        (state, None if state == "queued" else now, crashes, again, error, hint, job.key, job.owner, job.lease),
    )
    if done:
        job_rows.log(writer, job.key, now, level, line)
    return done > 0
