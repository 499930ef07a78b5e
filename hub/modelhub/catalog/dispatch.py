"""What rules ask for, as SQL: which checkpoints a rule means and nothing was done with yet; and what is written down of it.

`modelhub.rules.dispatch` decides what becomes of them. A checkpoint's own row says nothing of rules: ``dispatched`` has a row for
each (checkpoint, action), with the content (version, mtime) that it was done to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub import where
from modelhub.catalog import job_rows, query
from modelhub.catalog.database import Reader, Row, Writer
from modelhub.catalog.tables import dump, load
from modelhub.model import clean

if TYPE_CHECKING:
    from modelhub.catalog.job_rows import NewJob

PAGE = 1000
"""How many checkpoints one transaction deals with."""

_COLUMNS = (
    "c.key,c.id,c.version,c.modified_at,r.path,c.path,c.name,c.format,c.container,c.size,c.files,d.version,"
    # The primary file tells whether the checkpoint's path is a directory.
    "CASE WHEN c.alone<>0 THEN c.path ELSE (SELECT f.path FROM checkpoint_file x JOIN file f ON f.key=x.file "
    "WHERE x.checkpoint=c.key AND x.position=0) END"
)
_FROM = " FROM checkpoint c {join}JOIN root r ON r.key=c.root LEFT JOIN dispatched d ON d.checkpoint=c.key AND d.action=? WHERE "
_READY = "c.state='ready' AND c.missing=0 AND c.quarantined=0 AND r.offline=0"
# What a rule made is left alone by all rules that make something: they cannot chase each other.
_MADE = "SELECT {what} FROM lineage l WHERE l.checkpoint=c.key AND l.version=c.version AND l.rule<>''"


class Wanted(NamedTuple):
    """What a rule asks of the catalog: conditions as in ``ls --where``; its action; whether touched files count as new ones;
    whether it makes something."""

    where: Sequence[str]
    action: bytes
    again: bool
    converts: bool


class Match(NamedTuple):
    """A checkpoint that a rule means. Paths are bytes, relative to ``root``; ``before``: the version that the same was done to
    earlier, None for never."""

    key: int
    id: str
    version: int
    modified: int
    root: bytes
    path: bytes
    name: str
    format: str
    container: str
    size: int
    files: int
    before: int | None
    primary: bytes

    @property
    def absolute(self) -> bytes:
        return os.path.join(self.root, self.path) if self.path else self.root


class Question(NamedTuple):
    """A rule as SQL, ready to be asked of some checkpoints at a time."""

    sql: str
    values: tuple[Any, ...]

    def ask(self, reader: Reader, keys: Sequence[int] | range) -> list[Match]:
        """The checkpoints among ``keys`` (some; or all from the first to the last of a range) of which nothing was done yet."""
        if isinstance(keys, range):
            rows = reader.rows(f"{self.sql} AND c.key>=? AND c.key<?", (*self.values, keys.start, keys.stop))
        else:
            rows = reader.rows_in(f"{self.sql} AND c.key IN (??)", keys, self.values)
        return sorted(map(Match._make, rows))


def question(reader: Reader, wanted: Wanted) -> Question:
    """Which checkpoints the rule means that are ready, that no rule made (if it makes something itself), and that it has not been
    applied to as they are now."""
    sql, values = _conditions(reader, wanted.where)
    return Question(
        f"SELECT {_COLUMNS}{_FROM.format(join='')}{_READY} AND NOT ({_done(wanted)}){_not_made(wanted)}{sql}",
        (wanted.action, *values),
    )


def _conditions(reader: Reader, expressions: Sequence[str]) -> tuple[str, list[Any]]:
    """Conditions to be added to others, and their values."""
    clause, values = query.conditions(reader, "", expressions)
    return clause.replace(" WHERE ", " AND ", 1), values


def _done(wanted: Wanted) -> str:
    return "d.version IS NOT NULL AND d.version=c.version" + (" AND d.modified=c.modified_at" if wanted.again else "")


def _not_made(wanted: Wanted) -> str:
    return f" AND NOT EXISTS ({_MADE.format(what='1')})" if wanted.converts else ""


def changed_since(reader: Reader, since: int) -> list[int]:
    """Keys of the checkpoints that were indexed at this time or later."""
    # Sorted here: asked to, the database might walk along all of the keys.
    return sorted(key for (key,) in reader.rows("SELECT key FROM checkpoint WHERE indexed_at>=?", (since,)))


def pages(keys: Sequence[int] | None, last: int) -> Iterator[Sequence[int] | range]:
    """``keys`` in pages; None: every key up to ``last``."""
    everything: Sequence[int] | range = range(1, last + 1) if keys is None else keys
    for start in range(0, len(everything), PAGE):
        yield everything[start : start + PAGE]


def last_key(reader: Reader) -> int:
    return int(reader.value("SELECT max(key) FROM checkpoint") or 0)


# --- outputs ------------------------------------------------------------------------------------------------------


class Writing(NamedTuple):
    """A job that is queued or running, and writes."""

    id: str
    checkpoint: int | None
    rule: str
    source: bytes
    output: bytes


def writing_to(reader: Reader, outputs: Iterable[bytes]) -> dict[bytes, list[Writing]]:
    """The active jobs that write to any of ``outputs``."""
    found: dict[bytes, list[Writing]] = {}
    # Asked by the output alone: all other jobs with the same one are few.
    sql = "SELECT id,checkpoint,rule,source,output,state FROM job WHERE output IN (??)"
    for id, checkpoint, rule, source, output, state in reader.rows_in(sql, list(set(outputs))):
        if state in ("queued", "running"):
            found.setdefault(bytes(output), []).append(Writing(id, checkpoint, rule, bytes(source), bytes(output)))
    return found


def without_outputs(reader: Reader, matches: Sequence[Match]) -> list[Match]:
    """``matches`` without those that a rule's job is about to make, or has just made and not recorded yet."""
    places = {match.absolute for match in matches}
    places |= {os.path.dirname(place) for place in places}
    busy = {output for output, jobs in writing_to(reader, places).items() if any(job.rule for job in jobs)}
    several = {os.path.dirname(match.absolute) for match in matches if match.files > 1 and match.primary == match.path}
    for directory in several:  # shards are not called as their job's output is
        rows = reader.rows(
            "SELECT made,state FROM job WHERE output>=? AND output<? AND rule<>'' AND made<>''",
            (directory + b"/", directory + b"0"),
        )
        for made, state in rows:
            if state in ("queued", "running"):
                busy |= {os.fsencode(str(file["path"])) for file in load(made).get("files", ())}
    if not busy:
        return list(matches)
    return [match for match in matches if match.absolute not in busy and os.path.dirname(match.absolute) not in busy]


# --- writing it down ----------------------------------------------------------------------------------------------


def record(writer: Writer, action: bytes, matches: Sequence[Match], now: int) -> None:
    """Write down that something was done with ``matches``, or will be by a job that is added in the same transaction."""
    writer.many(
        "INSERT INTO dispatched (checkpoint,action,version,modified,at) VALUES (?,?,?,?,?) ON CONFLICT (checkpoint,action) "
        "DO UPDATE SET version=excluded.version,modified=excluded.modified,at=excluded.at",
        [(match.key, action, match.version, match.modified, now) for match in matches],
    )


def bring_up_to_date(writer: Writer, action: bytes, new: Mapping[int, NewJob]) -> set[int]:
    """Have jobs that still wait do what they were to do to the present content: ``new`` maps checkpoints to the jobs that would
    be added otherwise. Those for which there was one."""
    # Asked by the checkpoint alone: a database may take many jobs that are queued for fewer.
    rows = writer.rows_in("SELECT key,checkpoint,spec,state,origin FROM job WHERE checkpoint IN (??)", list(new))
    done = set()
    for key, checkpoint, spec, state, origin in rows:
        if (state, origin) == ("queued", "rule") and _action(spec) == action:
            job = new[checkpoint]
            place = os.fsencode(str(job.spec.get("output") or ""))
            values = (job.version, os.fsencode(job.source), clean(dump(dict(job.spec))), place, key)
            writer.run("UPDATE job SET version=?,source=?,spec=?,output=? WHERE key=?", values)
            done.add(checkpoint)
    return done


def _action(spec: str) -> bytes:
    """The rule's action that a job was added for."""
    return bytes.fromhex(str(load(spec).get("action", "")))


def refuse(writer: Writer, ids: Mapping[str, tuple[str, str]], now: int) -> None:
    """Have jobs that were just added fail: id -> (error, hint)."""
    for id, (error, hint) in ids.items():
        key = writer.value("SELECT key FROM job WHERE id=?", (id,))
        sql = "UPDATE job SET state='failed',finished=?,error=?,hint=? WHERE key=?"
        writer.run(sql, (now, clean(error), clean(hint), key))
        job_rows.log(writer, key, now, "error", f"failed: {error}")


class Back(NamedTuple):
    """A job that failed or waits because what it is about was not there, and is again."""

    key: int
    id: str
    origin: str
    action: bytes


def back(reader: Reader, hint: str, keys: Sequence[int] | None) -> list[Back]:
    """Jobs about checkpoints (``keys``; None: any) that are there again; known by the ``hint`` that they failed with."""
    sql = (
        "SELECT j.key,j.id,j.origin,j.spec FROM job j JOIN checkpoint c ON c.key=j.checkpoint JOIN root r ON r.key=c.root "
        f"WHERE j.hint=? AND c.version=j.version AND {_READY} "
        "AND ((j.state='queued' AND j.not_before>0) OR (j.state='failed' AND j.origin<>'user'))"
    )
    rows = reader.rows(sql, (hint,)) if keys is None else reader.rows_in(f"{sql} AND j.checkpoint IN (??)", keys, (hint,))
    return [Back(key, id, origin, _action(spec)) for key, id, origin, spec in rows]


def revive(writer: Writer, keys: Sequence[int]) -> None:
    """Queue those jobs again, for now."""
    writer.many(
        "UPDATE job SET state='queued',attempts=0,crashes=0,not_before=0,finished=NULL,error='',hint='' "
        "WHERE key=? AND state IN ('queued','failed')",
        [(key,) for key in keys],
    )


# --- when rules change --------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """A job of a rule that waits, and the action that it was dispatched for."""

    key: int
    checkpoint: int | None
    rule: str
    priority: int
    action: bytes


def queued(reader: Reader) -> list[Standing]:
    """The jobs of rules that wait."""
    rows = reader.rows("SELECT key,checkpoint,rule,priority,spec FROM job WHERE state='queued' AND origin='rule'")
    return [Standing(key, checkpoint, rule, priority, _action(spec)) for key, checkpoint, rule, priority, spec in rows]


def still_meant(reader: Reader, expressions: Sequence[str], keys: Sequence[int]) -> set[int]:
    """Those of the checkpoints for which the conditions hold, wherever they are now."""
    sql, values = _conditions(reader, expressions)
    sql = f"SELECT c.key FROM checkpoint c LEFT JOIN root r ON r.key=c.root WHERE 1=1{sql} AND c.key IN (??)"
    return {key for (key,) in reader.rows_in(sql, keys, values)}


def rename(writer: Writer, jobs: Mapping[int, tuple[str, int]]) -> None:
    """Give waiting jobs the name and the priority that their rules have now."""
    writer.many(
        "UPDATE job SET rule=?,priority=? WHERE key=? AND state='queued'",
        [(clean(name), priority, key) for key, (name, priority) in jobs.items()],
    )


def withdraw(writer: Writer, jobs: Mapping[int, str], now: int) -> int:
    """Cancel waiting jobs of rules: key -> reason. That they were dispatched is forgotten, so that a rule which comes back finds
    them again. How many there were."""
    rows = writer.rows_in("SELECT key,checkpoint,spec,state FROM job WHERE key IN (??)", list(jobs))
    still = [(key, checkpoint, spec) for key, checkpoint, spec, state in rows if state == "queued"]
    writer.many(
        "UPDATE job SET state='cancelled',finished=?,error=? WHERE key=?", [(now, clean(jobs[key]), key) for key, *_ in still]
    )
    writer.many(
        "DELETE FROM dispatched WHERE checkpoint=? AND action=?",
        [(checkpoint, _action(spec)) for _, checkpoint, spec in still if checkpoint is not None],
    )
    return len(still)


# --- for people ---------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A checkpoint that a rule's conditions hold for, and what stands between them. ``done``: it was done to what is there now;
    ``made_by``: the rule that made it, None for none."""

    match: Match
    state: str
    done: bool
    made_by: str | None


def listed(reader: Reader, wanted: Wanted, keys: Sequence[int] | None = None) -> list[Listed]:
    """Every checkpoint (of ``keys``) for which the conditions hold, whatever its state, by name. One outside any root has b"" for
    it."""
    sql, values = _conditions(reader, wanted.where)
    done = f"CASE WHEN {_done(wanted)} THEN 1 ELSE 0 END"
    sql = f"SELECT {_COLUMNS},{where.STATE},{done},({_MADE.format(what='max(l.rule)')}){_FROM.format(join='LEFT ')}1=1{sql}"
    rows = reader.rows(sql, (wanted.action, *values)) if keys is None else None
    if rows is None:
        rows = reader.rows_in(f"{sql} AND c.key IN (??)", keys or (), (wanted.action, *values))
    width = len(Match._fields)
    found = [
        Listed(Match._make((*row[:4], row[4] or b"", *row[5:width])), row[width], bool(row[width + 1]), row[width + 2])
        for row in rows
    ]
    return sorted(found, key=lambda item: (item.match.name, item.match.root, item.match.path))


def counts(reader: Reader, wanted: Wanted) -> tuple[int, int]:
    """How many checkpoints the rule means now, and to how many of them it was applied."""
    sql, values = _conditions(reader, wanted.where)
    done = f"coalesce(sum(CASE WHEN {_done(wanted)} THEN 1 ELSE 0 END),0)"
    sql = f"SELECT count(*),{done}{_FROM.format(join='')}{_READY}{_not_made(wanted)}{sql}"
    ((means, applied),) = reader.rows(sql, (wanted.action, *values))
    return int(means), int(applied)


def jobs_by_rule(reader: Reader) -> dict[tuple[str, str], int]:
    """(rule, state) -> how many jobs, about what is there now."""
    rows: list[Row] = reader.rows(
        "SELECT j.rule,j.state,count(*) FROM job j LEFT JOIN checkpoint c ON c.key=j.checkpoint "
        "WHERE j.origin='rule' AND (j.state IN ('queued','running') OR c.version=j.version) GROUP BY j.rule,j.state"
    )
    return {(rule, state): int(number) for rule, state, number in rows}


def last_jobs(reader: Reader, rule: str) -> dict[int, tuple[str, str, str]]:
    """The latest job of a rule for each checkpoint: key -> (id, state, error)."""
    rows = reader.rows("SELECT checkpoint,id,state,error FROM job WHERE origin='rule' AND rule=? ORDER BY key", (clean(rule),))
    return {checkpoint: (id, state, error) for checkpoint, id, state, error in rows if checkpoint is not None}


# --- scrubbing ----------------------------------------------------------------------------------------------------


def scrubbed_since(reader: Reader, since: int) -> list[tuple[int, int]]:
    """(when, bytes) of the scrub's jobs that were added after this time."""
    rows = reader.rows("SELECT created,spec FROM job WHERE origin='scrub' AND created>?", (since,))
    return [(created, int(load(spec).get("size", 0))) for created, spec in rows]


def scrubs_waiting(reader: Reader) -> int:
    return int(reader.value("SELECT count(*) FROM job WHERE state IN ('queued','running') AND origin='scrub'"))


def longest_unread(
    reader: Reader, action: bytes, before: int, failed_before: int, limit: int, keys: Sequence[int] | None = None
) -> list[Match]:
    """The ready checkpoints with a file that was last read before ``before``, or never; and that were not taken up for that since
    then (one that was, and still has no digest: not since ``failed_before``). What was read longest ago comes first. ``keys``: of
    these only."""
    among = "" if keys is None else f" AND c.key IN ({','.join(str(int(key)) for key in keys)})"
    read = (
        "SELECT min(CASE WHEN t.digested_mtime=f.mtime AND t.digested_inode=f.inode THEN t.digested ELSE 0 END) "
        "FROM checkpoint_file x JOIN file f ON f.key=x.file LEFT JOIN content t ON t.key=f.content WHERE x.checkpoint=c.key"
    )
    rows = reader.rows(
        f"SELECT s.key FROM (SELECT c.key AS key,CASE WHEN c.sha256 IS NULL THEN 0 ELSE coalesce(({read}),0) END AS read,"
        f"CASE WHEN d.version=c.version THEN d.at ELSE 0 END AS taken{_FROM.format(join='')}{_READY} "
        f"AND (d.at IS NULL OR d.version<>c.version OR d.at<?){among}) s "
        "WHERE (s.read=0 AND s.taken<?) OR (s.read>0 AND s.read<? AND s.taken<?) "
        f"ORDER BY CASE WHEN s.taken>s.read THEN s.taken ELSE s.read END,s.key LIMIT {int(limit)}",
        (action, max(before, failed_before), failed_before, before, before),
    )
    order = {key: place for place, (key,) in enumerate(rows)}
    found = reader.rows_in(f"SELECT {_COLUMNS}{_FROM.format(join='')}c.key IN (??)", list(order), (action,))
    return sorted(map(Match._make, found), key=lambda match: order[match.key])
