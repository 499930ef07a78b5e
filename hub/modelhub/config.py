"""``config.toml`` as values: its sections, what they may hold, and what is wrong with them in words. Acts on none of it.

Each section's owner gets a frozen record with every key decided. Rules are read by `modelhub.rules.read`, for they need more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from modelhub import home
from modelhub.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
_DECADE = 10 * 366 * 86400.0


def duration(value: object, where: str) -> float:
    """Seconds: a number of them, or a text like "90s", "1h", "1h30m" or "30d". ``where`` names the key in errors."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= _DECADE:
        return float(value)
    if isinstance(value, str):
        text = value.strip().lower()
        parts = [match.groups() for match in _DURATION.finditer(text)]
        whole = bool(parts) and not _DURATION.sub("", text)
        if whole and all(unit in _UNITS for _, unit in parts):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
            if seconds <= _DECADE:
                return seconds
        elif re.fullmatch(r"\d+(\.\d+)?", text) and float(text) <= _DECADE:
            return float(text)
    raise UsageError(f"{where} is {shown(value)}, which is no duration", 'give seconds, or a text like "90s", "1h30m" or "30d"')


def size(value: object, where: str) -> int:
    """Bytes: a number of them, or a text like "8GB" (10^9) or "8GiB" (2^30). ``where`` names the key in errors."""
    from modelhub.where import quantity

    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    if isinstance(value, str):
        try:
            found = quantity(value.strip(), "size", where)
        except UsageError:
            found = -1
        if 0 <= found < 1 << 63:
            return int(found)
    raise UsageError(f"{where} is {shown(value)}, which is no size", 'give bytes, or a text like "8GB" or "500MiB"')


def count(value: object, where: str) -> int:
    """A whole number from 0. ``where`` names the key in errors."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
        return value
    raise UsageError(f"{where} is {shown(value)}, which is no whole number from 0", "give one, without quotes")


def _key(default: Any, kind: Callable[[object, str], Any], least: float = 0) -> Any:
    return field(default=default, metadata={"kind": kind, "least": least})


@dataclass(frozen=True, slots=True)
class Watch:
    """``[watch]``, in seconds. A new or changed file is looked at once it has stood still for ``settle``, or has kept changing
    for ``longest_wait`` (at least 6 times ``settle`` where only that is given). ``poll``: between two looks at a drive that sends
    no events; ``reconcile``: between two full looks at one that does."""

    settle: float = _key(5.0, duration)
    longest_wait: float = _key(30.0, duration)
    poll: float = _key(60.0, duration, 1)
    reconcile: float = _key(3600.0, duration, 60)

    @property
    def patience(self) -> float:
        """Half of ``longest_wait``: so long a busy directory waits for its first look, and a file in it for the one that takes
        it as it is."""
        return max(self.settle, self.longest_wait / 2)


@dataclass(frozen=True, slots=True)
class Work:
    """``[jobs]``. ``workers``: jobs at a time, 0 for none; ``memory``: bytes that one worker may take; ``keep``: seconds that
    finished jobs are remembered."""

    workers: int = _key(2, count)
    memory: int = _key(8 * 10**9, size, 256 * 10**6)
    keep: float = _key(30 * 86400.0, duration)


@dataclass(frozen=True, slots=True)
class Scrub:
    """``[scrub]``: files are read again, those first that were read longest ago, and each not before ``every`` seconds have
    passed; at most ``bytes_per_day``."""

    bytes_per_day: int = _key(500 * 10**9, size, 1)
    every: float = _key(30 * 86400.0, duration, 60)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything in ``config.toml`` but its rules. ``scrub`` is None where there is no ``[scrub]``: nothing is scrubbed.
    ``rules``: the tables as they stand, for `modelhub.rules.read`."""

    exclude: tuple[str, ...] = ()
    catalog: str | None = None
    watch: Watch = Watch()
    jobs: Work = Work()
    scrub: Scrub | None = None
    rules: tuple[Any, ...] = ()


def settings() -> Settings:
    """What ``config.toml`` says now. UsageError where it is wrong."""
    return read(home.read_config())


def read(config: Mapping[str, Any], path: str | None = None) -> Settings:
    """The settings that ``config`` states; ``path`` is where it came from, for errors. UsageError names the file, the key, what
    is wrong with it and what may be there."""
    path = path or home.config_path()
    known = [item.name for item in fields(Settings)]
    for key in config:
        if key not in known:
            raise unknown_key(f"{key!r} in {path}", key, known)
    watch = _section(Watch, config, "watch", path)
    if "longest_wait" not in config.get("watch", {}):
        watch = replace(watch, longest_wait=max(watch.longest_wait, 6 * watch.settle))
    if watch.longest_wait < watch.settle:
        raise UsageError(
            f"[watch] longest_wait in {path} is {watch.longest_wait:g} s, less than settle, which is {watch.settle:g} s",
            "give it at least as long",
        )
    return Settings(
        exclude=_exclude(config.get("exclude", []), path),
        catalog=_catalog(config.get("catalog"), path),
        watch=watch,
        jobs=_section(Work, config, "jobs", path),
        scrub=_section(Scrub, config, "scrub", path) if "scrub" in config else None,
        rules=_rules(config.get("rules", []), path),
    )


def unknown_key(what: str, key: str, known: list[str]) -> UsageError:
    """The error for a key that nobody knows, with the one that was probably meant."""
    near = get_close_matches(key.lower(), known, 1)
    return UsageError(f"{what} is not known", (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(known)}")


def _section(kind: type[Any], config: Mapping[str, Any], name: str, path: str) -> Any:
    given = config.get(name, {})
    if not isinstance(given, Mapping):
        raise UsageError(f"'{name}' in {path} is {shown(given)}, not a section", f"write [{name}] on a line, its keys below it")
    keys = {item.name: item for item in fields(kind)}
    values = {}
    for key, value in given.items():
        where = f"[{name}] {key} in {path}"
        if key not in keys:
            raise unknown_key(where, key, list(keys))
        values[key] = keys[key].metadata["kind"](value, where)
        least = keys[key].metadata["least"]
        if values[key] < least:
            raise UsageError(f"{where} is {shown(value)}, which is too little", f"give at least {least:,}")
    return kind(**values)


def _exclude(given: object, path: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(pattern, str) for pattern in given):
        raise UsageError(f"'exclude' in {path} is not a list of texts", 'like exclude = ["*.tmp", "archive/**"]')
    return tuple(given)


def _catalog(given: object, path: str) -> str | None:
    if given is not None and not isinstance(given, str):
        raise UsageError(f"'catalog' in {path} is not a text", "give a path or a database URL in quotes")
    return given


def _rules(given: object, path: str) -> tuple[Any, ...]:
    if not isinstance(given, list):
        raise UsageError(f"'rules' in {path} is {shown(given)}, not a list of tables", "each rule begins with [[rules]]")
    return tuple(given)


def shown(value: object) -> str:
    """A value as it stands in the file, more or less."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    return f'"{value}"' if isinstance(value, str) else str(value)
