"""Reads everything again, slowly: which checkpoints are due, as jobs that compare digests. Reads nothing itself.

A file whose bytes changed although its size and time did not is rotten, or was tampered with; only reading it tells. Off unless
``config.toml`` has a ``[scrub]`` section. What is due is let out evenly over the day, so that a drive is never read at full speed
for hours.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

from modelhub.catalog import dispatch as sql
from modelhub.catalog.job_rows import NewJob
from modelhub.config import Scrub

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

DAY = 86_400 * 10**9
HOUR = 3_600 * 10**9
ACTION = sha256(b"scrub").digest()[:16]
"""How the catalog knows what was scrubbed, and when."""
AT_ONCE = 100
"""Of more jobs than this, the next ones wait until some are done."""
ATTEMPTS = 5


def due(catalog: Catalog, config: Scrub | None, now: int) -> list[str]:
    """Add verification jobs for the checkpoints whose files were read longest ago, none that was read within ``config.every``,
    those that never were first; their ids. ``now`` in nanoseconds since 1970.

    Over any day the sizes of what is taken stay within ``config.bytes_per_day``; a checkpoint that is larger is taken when
    nothing else was for a day. Each takes its part of the day: no more is let out at once than an hour's share.
    """
    if config is None:
        return []
    with catalog.database.read() as reader:
        taken = sql.scrubbed_since(reader, now - DAY)
        if sql.scrubs_waiting(reader) >= AT_ONCE or _next_at(taken, config, now) > now:
            return []
        before = now - int(config.every * 1e9)
        candidates = sql.longest_unread(reader, ACTION, before, now - DAY, AT_ONCE)
    chosen = []
    for match in candidates:
        spent = sum(size for _, size in taken)
        if _next_at(taken, config, now) > now or (taken and spent + match.size > config.bytes_per_day):
            break  # not a smaller one in its place: a large one would wait for ever
        chosen.append(match)
        taken.append((now, match.size))
    if not chosen:
        return []
    with catalog.database.write() as writer:
        keys = [match.key for match in chosen]
        still = {match.key for match in sql.longest_unread(writer, ACTION, before, now - DAY, AT_ONCE, keys)}
        chosen = [match for match in chosen if match.key in still]
        jobs = [
            NewJob(
                "verify", os.fsdecode(match.absolute), {"level": "digest", "size": match.size}, match.key, match.version, "scrub",
                max_attempts=ATTEMPTS,
            )
            for match in chosen
        ]  # fmt: skip
        sql.record(writer, ACTION, chosen, now)
        return catalog.jobs.add_many(writer, jobs)


def _next_at(taken: list[tuple[int, int]], config: Scrub, now: int) -> float:
    """When the next checkpoint may be taken: each of the last day's took as much of it as its share of the day's bytes; of time
    that went unused, an hour is kept."""
    paid = 0.0
    for at, size in sorted(taken):
        paid = max(paid, at - HOUR) + size / config.bytes_per_day * DAY
    return max(paid, now - HOUR)
