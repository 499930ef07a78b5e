"""Is a root there, and is what was not met in it really gone? Nothing is called missing for a drive that was pulled.

A root is there when what is mounted at it is what was scanned before. A file is gone when its root was there before and after,
no mount changed meanwhile, its name leads nowhere, and the directory it should lie in is on the device that it was on.
"""

from __future__ import annotations

import errno
import os
import select
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modelhub.catalog.rows import signed
from modelhub.mounts import Mount, mount_of, mounts

TRIES = 5
"""How often it is asked again whether files are gone, where mounts change all the while."""
SAMPLES = 5
"""So many files of a device are looked for before it is taken to be gone."""

On = Callable[[int, bytes], Sequence[bytes]]
"""Paths of some files at and below a directory that the catalog knows on a device."""


@dataclass(frozen=True, slots=True)
class Place:
    """What stands at a root's path at one moment."""

    device: int
    inode: int
    fstype: str
    source: str
    empty: bool
    network: bool


class Mounts:
    """The mount table, and whether it changed since it was read. A context manager."""

    def __init__(self) -> None:
        self._file = -1
        self._poll = select.poll()
        try:
            self._file = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._file, select.POLLPRI | select.POLLERR)
        except OSError:
            pass
        self.table: list[Mount] = []
        self.read()

    def read(self) -> None:
        self.changed()
        self.table = mounts()

    def changed(self) -> bool:
        """Whether a mount came or went since this was asked last."""
        return self._file >= 0 and bool(self._poll.poll(0))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Mounts:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def look_at(path: bytes, table: list[Mount]) -> Place:
    """What stands at ``path``. OSError where it cannot be listed."""
    info = os.stat(path)
    with os.scandir(path) as entries:
        empty = next(iter(entries), None) is None
    mount = mount_of(os.fsdecode(path), table)
    fstype, source, network = (mount.type, mount.origin, mount.network) if mount else ("", "", False)
    return Place(info.st_dev, signed(info.st_ino), fstype, source, empty, network)


@dataclass(slots=True)
class Verdict:
    """``gone``: paths of files that are certainly gone. ``back``: there after all. ``unknown``: could not be asked for.
    ``there``: whether the root was there all the time."""

    gone: list[bytes] = field(default_factory=list)
    back: list[bytes] = field(default_factory=list)
    unknown: list[bytes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    there: bool = True


class Presence:
    """Judges what is gone from one root. ``before``: what stood there when the walk began. ``devices``: on which device the
    catalog has each path."""

    def __init__(self, root: bytes, before: Place, table: Mounts, known_on: On) -> None:
        self.root = root
        self.before = before
        self.table = table
        self.known_on = known_on

    def unchanged(self) -> bool:
        """Whether the same root is still there."""
        try:
            now = look_at(self.root, mounts())
        except OSError:
            return False
        then = self.before
        return (now.device, now.inode, now.fstype, now.source) == (then.device, then.inode, then.fstype, then.source)

    def judge(self, devices: dict[bytes, int], met: Callable[[bytes], bool]) -> Verdict:
        """Which of the paths in ``devices``, not met in a walk, are gone. ``met``: whether a walk would have met the file at a
        path, were it there."""
        for _ in range(TRIES):
            self.table.changed()
            verdict = self._judge(devices, met)
            if not self.unchanged():
                return Verdict(there=False, problems=[f"{os.fsdecode(self.root)} went away while it was scanned"])
            if not devices or not self.table.changed():
                return verdict
        return Verdict(
            unknown=list(devices), problems=[f"{os.fsdecode(self.root)}: mounts change all the while; what is gone is not known"]
        )

    def _judge(self, devices: dict[bytes, int], met: Callable[[bytes], bool]) -> Verdict:
        verdict = Verdict()
        places = _Places(self.root)
        elsewhere: dict[tuple[int, bytes], list[bytes]] = defaultdict(list)
        for path, device in devices.items():
            try:
                os.stat(os.path.join(self.root, path))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                if error.errno != errno.ELOOP:
                    verdict.unknown.append(path)
                    verdict.problems.append(f"{os.fsdecode(os.path.join(self.root, path))} cannot be read: {error.strerror}")
                    continue
            else:
                if met(path):
                    verdict.back.append(path)
                    continue
            holder, now = places.of(os.path.dirname(path))
            if now < 0:
                verdict.unknown.append(path)
            elif device in (0, now):
                verdict.gone.append(path)
            else:
                elsewhere[device, holder].append(path)
        for (device, holder), paths in elsewhere.items():
            if self._went_away(device, holder, set(devices)):
                where = os.fsdecode(os.path.join(self.root, holder))
                verdict.problems.append(
                    f"{len(paths)} files below {where} were on another drive, which is not mounted there now: left as they were"
                )
            else:
                verdict.gone += paths
        return verdict

    def _went_away(self, device: int, holder: bytes, gone: set[bytes]) -> bool:
        """Whether the drive ``device``, which had files below ``holder``, was unmounted: rather than that the files went, or
        the links to them."""
        table = mounts()
        place = os.fsdecode(os.path.join(self.root, holder))
        at = mount_of(place, table)
        if at is None or at.type == "overlay":  # its files tell devices of their own
            return False
        root = os.path.realpath(os.fsdecode(self.root)).rstrip("/")
        point = at.point
        region = os.fsencode(point[len(root) + 1 :]) if point.startswith(root + "/") else b""
        for path in self.known_on(device, region):
            if path not in gone and os.path.exists(os.path.join(self.root, path)):
                return False
        if region:
            return True  # another drive is mounted there now, or one that hides what it is mounted over
        mounted = any(mount.device == f"{os.major(device)}:{os.minor(device)}" for mount in table)
        return not (mounted and _entries(place))


class _Places:
    """The nearest directories that are there, and their devices; each asked for once."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._known: dict[bytes, tuple[bytes, int]] = {}

    def of(self, path: bytes) -> tuple[bytes, int]:
        """(path, device) of the nearest directory at or above ``path``; the device is -1 where that cannot be told."""
        found = self._known.get(path)
        if found is None:
            try:
                found = path, os.stat(os.path.join(self.root, path)).st_dev
            except (FileNotFoundError, NotADirectoryError):
                found = self.of(os.path.dirname(path)) if path else (path, -1)
            except OSError:
                found = path, -1
            self._known[path] = found
        return found


def _entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(iter(entries), None) is not None
    except OSError:
        return False
