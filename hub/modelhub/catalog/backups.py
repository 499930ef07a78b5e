"""Backups of a SQLite catalog, by SQLite's online-backup API: they are whole even while others write."""

from __future__ import annotations

import os
import re
import sqlite3
import time

from modelhub.home import backups_path

KEEP = 5
"""How many backups of one catalog are kept."""


def backup(path: str, label: str) -> str:
    """Copy the catalog ``path`` into the backups as ``STEM-UTC-label.db`` and drop the oldest. The backup's path."""
    directory = backups_path()
    os.makedirs(directory, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)  # of one look at the clock, so that names are in the order of backups
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f"{rest:09d}"
    target = os.path.join(directory, f"{_stem(path)}-{stamp}Z-{label}.db")
    scratch = target + ".tmp"
    source, copy = sqlite3.connect(path, timeout=30), sqlite3.connect(scratch)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    os.replace(scratch, target)
    for old in backups(path)[KEEP:]:
        os.unlink(old)
    return target


def backups(path: str) -> list[str]:
    """The backups of the catalog ``path``, newest first."""
    directory = backups_path()
    pattern = re.compile(re.escape(_stem(path)) + r"-\d{8}T\d{15}Z-[^/]*\.db")
    try:
        names = [name for name in os.listdir(directory) if pattern.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(directory, name) for name in sorted(names, reverse=True)]


def newest(path: str) -> str:
    """The newest backup, or ""."""
    found = backups(path) if path else []
    return found[0] if found else ""


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
