"""Where an output grows before it gets its name: a directory beside the destination that the scanner ignores.

Its owner holds a lock on it for as long as it lives, so that others can tell what a killed one left, and `sweep` it. What is to
be published is written down in it first (the *intent*): from then on a publish whose owner died is carried through by whoever
sweeps, and all that was not so far is thrown away. So whatever happens, names hold either what they held or the new output, and
what was to be replaced is gone only when its replacement stands.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType

from modelhub.errors import ConversionError, OutputExists
from modelhub.jobs.identity import is_alive, owner

PREFIX = ".modelhub-"
_LOCK = "owner.lock"
_INTENT = "intent.json"
FOREIGN_SECONDS = 3600.0
"""How long another host's scratch must lie untouched before it is taken for a dead one's."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


class Scratch:
    """A scratch directory in ``parent``, gone when the block ends. `sweep` of the parent comes first."""

    def __init__(self, parent: str) -> None:
        sweep(parent)
        self.parent = parent
        self.path, self._lock = _new(parent)
        self.output = os.path.join(self.path, "output")
        os.mkdir(self.output)
        self._keep = False
        _living.add(self)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _living.discard(self)
        if not self._keep:
            _remove(self.path)
        os.close(self._lock)
        if not self._keep:
            _remove_directory(self.path)

    def publish(self, names: Sequence[str], *, replace: bool) -> None:
        """Give the files (or directories) of ``output`` their real names in ``parent``, in this order: an index comes last. All
        are fsynced already. OutputExists where a name is taken and ``replace`` is not set; then none of them has moved."""
        news, olds = {}, {}
        for name in names:
            target = os.path.join(self.parent, name)
            if os.path.lexists(target):
                if not replace and not is_empty_directory(target):
                    raise _exists(target)
                olds[name] = _identity(target)
            news[name] = _identity(os.path.join(self.output, name))
        intent = _Intent(tuple(names), replace, news, olds)
        try:
            intent.write(self.path)
            for name in names:
                _give(self.path, self.parent, name, replace, name in olds)
            sync_directory(self.parent)
        except BaseException as error:
            self._keep = not _take_back(self.path, self.parent, intent)
            if isinstance(error, OSError):
                what = f"the output in {self.parent} could not be given its name: {error.strerror}"
                raise ConversionError(what, "nothing was lost; try again") from error
            raise


_living: set[Scratch] = set()


def abandon() -> None:
    """Remove what this process has, for it is about to end without unwinding. A publish that was begun is left to be carried
    through."""
    for scratch in list(_living):
        if not os.path.lexists(os.path.join(scratch.path, _INTENT)):
            _remove(scratch.path)
            _remove_directory(scratch.path)


def _new(parent: str) -> tuple[str, int]:
    """Make a scratch directory and lock it. A sweep that comes by in between may take it for a dead one's: then another."""
    try:
        os.makedirs(parent, exist_ok=True)
        while True:
            path = os.path.join(parent, f"{PREFIX}{secrets.token_hex(6)}.tmp")
            os.mkdir(path)
            try:
                lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(lock)
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(os.path.join(path, _LOCK)), os.fstat(lock)):
                    os.write(lock, owner().encode())
                    return path, lock
            os.close(lock)
    except OSError as error:
        raise ConversionError(f"cannot write in {parent}: {error.strerror}", "name another place with -o PATH") from error


# --- giving names -------------------------------------------------------------------------------------------------


def _give(path: str, parent: str, name: str, replace: bool, old: bool) -> None:
    """Give one file or directory its name. OutputExists where another stands there."""
    source, target = os.path.join(path, "output", name), os.path.join(parent, name)
    try:
        if os.path.isdir(source):
            _give_directory(path, source, target, replace, old)
        elif replace:
            os.replace(source, target)
        else:
            _give_new(source, target)
    except (FileExistsError, NotADirectoryError) as error:
        raise _exists(target) from error
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise _exists(target) from error
        raise


def _give_new(source: str, target: str) -> None:
    try:
        os.link(source, target)  # unlike a rename, this never replaces what came in between
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def _give_directory(path: str, source: str, target: str, replace: bool, old: bool) -> None:
    if not replace or not old or is_empty_directory(target):
        os.rename(source, target)
        return
    try:
        exchange(source, target)  # what was there goes with the scratch
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        aside = _aside(path, os.path.basename(target))
        os.rename(target, aside)
        os.rename(source, target)


def _take_back(path: str, parent: str, intent: _Intent) -> bool:
    """Undo what was done of a publish that failed, as far as nothing was replaced for good. False where the scratch must stay,
    because it holds what was there before."""
    for name in intent.names:
        aside, target = _aside(path, name), os.path.join(parent, name)
        if os.path.lexists(aside):
            try:
                if os.path.lexists(target):
                    return False
                os.rename(aside, target)
            except OSError:
                return False
    given = [name for name in intent.names if not os.path.lexists(os.path.join(path, "output", name))]
    if any(name in intent.olds for name in given):
        return True  # something old is replaced already: what stands, stands
    for name in given:
        target = os.path.join(parent, name)
        with contextlib.suppress(OSError):
            if _identity(target) == intent.news[name]:
                os.rename(target, os.path.join(path, "output", name))
    return True


def exchange(one: str, other: str) -> None:
    """Swap two names in one step (renameat2(2), RENAME_EXCHANGE). OSError where the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd, flag = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), ctypes.c_uint(flag)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def _aside(path: str, name: str) -> str:
    return os.path.join(path, f"replaced-{name}")


def _exists(target: str) -> OutputExists:
    return OutputExists(f"{target} is there already", "--force replaces it, -o PATH names another place")


# --- the intent ---------------------------------------------------------------------------------------------------


def _identity(path: str) -> list[int]:
    """What tells whether this is still what it was: size and mtime of a file, mtime of a directory; and the inode."""
    info = os.lstat(path)
    return [info.st_ino, info.st_mtime_ns, 0 if os.path.isdir(path) else info.st_size]


@dataclass(frozen=True, slots=True)
class _Intent:
    """What is to be published: names, in order; what is known of the new things and of the old ones under these names."""

    names: tuple[str, ...]
    replace: bool
    news: Mapping[str, list[int]]
    olds: Mapping[str, list[int]]

    def write(self, path: str) -> None:
        """From here on, whoever sweeps carries it through."""
        final = os.path.join(path, _INTENT)
        fd = os.open(final + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, json.dumps(asdict(self)).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(final + ".new", final)
        sync_directory(path)


def _read_intent(path: str) -> _Intent | None:
    """The intent in a scratch directory; None where there is none, or what stands there is not ours."""
    try:
        with open(os.path.join(path, _INTENT), "rb") as file:
            found = _Intent(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(found.news, dict) or not isinstance(found.olds, dict) or not isinstance(found.names, list):
        return None
    return found if all(isinstance(name, str) and _is_name(name, path) and name in found.news for name in found.names) else None


def _is_name(name: str, path: str) -> bool:
    """Whether this names something in the ``output`` of the scratch directory ``path``, and nothing elsewhere: anybody may make
    such a directory on a shared drive, with links in it."""
    if not name or os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        return False
    folder = os.path.dirname(name)
    there = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path), "output", folder).rstrip("/")
    return os.path.realpath(os.path.join(path, "output", folder)) == there


def _carry_through(path: str, parent: str, intent: _Intent) -> bool:
    """Do what is left of a dead owner's publish. False where the scratch must stay: it holds what was there before, and somebody
    has put another thing in its place since."""
    left = []
    for name in intent.names:
        source, target = os.path.join(path, "output", name), os.path.join(parent, name)
        if not os.path.lexists(source):
            continue  # it has its name
        old = intent.olds.get(name)
        if not os.path.lexists(target):
            left.append((name, False))
        elif _same_file(source, target):
            os.unlink(source)  # linked, not yet unlinked
        elif old is not None and _identity(target) == old:
            left.append((name, True))
        elif old is not None and os.lstat(source).st_ino == old[0]:
            continue  # exchanged: this is the old one
        else:
            return _take_back(path, parent, intent)
    for name, old_there in left:
        try:
            _give(path, parent, name, intent.replace, old_there)
        except OutputExists:
            return _take_back(path, parent, intent)
    sync_directory(parent)
    return True


def _same_file(one: str, other: str) -> bool:
    return os.path.samestat(os.lstat(one), os.lstat(other))


# --- sweeping -----------------------------------------------------------------------------------------------------


def sweep(parent: str) -> list[str]:
    """Deal with the scratch directories in ``parent`` whose owners are gone: what they had begun to publish is published, the
    rest removed. Returns the paths of those that are gone now."""
    try:
        names = [name for name in os.listdir(parent) if name.startswith(PREFIX) and name.endswith(".tmp")]
    except OSError:
        return []
    return [path for path in (os.path.join(parent, name) for name in names) if _sweep(path, parent)]


def _sweep(path: str, parent: str) -> bool:
    if os.path.islink(path):
        return False
    try:
        lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # killed before its first step or after its last
        return _remove_directory(path)
    except OSError:  # not ours to touch
        return False
    try:
        if not _is_dead(path, lock):
            return False
        intent = _read_intent(path)
        if intent is not None and not _carry_through(path, parent, intent):
            return False
        _remove(path)
    except OSError:  # the file system fails: another time
        return False
    finally:
        os.close(lock)
    return _remove_directory(path)


def _is_dead(path: str, lock: int) -> bool:
    """Whether nobody owns a scratch directory any more. A lock may say nothing of other hosts (it depends on the mount): what one
    of theirs has written to lately is left alone."""
    holder = os.pread(lock, 1000, 0).decode(errors="replace")
    alive = is_alive(holder) if holder else False
    if alive:  # a process has its own lock where the file system makes it one of the process's, not of the file's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS and bool(holder) and alive is False
    if not os.path.lexists(os.path.join(path, _LOCK)):
        return False  # somebody else has swept it just now
    return alive is not None or time.time() - _last_write(path) > FOREIGN_SECONDS


def _last_write(path: str) -> float:
    """When something in a scratch directory was last written to, in seconds since 1970."""
    latest = os.stat(path).st_mtime
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                latest = max(latest, os.lstat(os.path.join(folder, name)).st_mtime)
    return latest


def _remove(path: str) -> None:
    """Empty a scratch directory. Its intent goes first and its lock last: a half-removed one must not be taken for a publish that
    is to be carried through, and one without a lock holds nothing."""
    try:
        os.unlink(os.path.join(path, _INTENT))
    except FileNotFoundError:
        pass
    except OSError:
        return
    try:
        names = [name for name in os.listdir(path) if name != _LOCK]
    except OSError:
        return
    for name in names:
        entry = os.path.join(path, name)
        if os.path.isdir(entry) and not os.path.islink(entry):
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry)
    with contextlib.suppress(OSError):
        if os.listdir(path) == [_LOCK]:
            os.unlink(os.path.join(path, _LOCK))


def _remove_directory(path: str) -> bool:
    """After the lock is closed, for network file systems keep a removed file that is open under another name; whether it is
    gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_empty_directory(path: str) -> bool:
    """Whether ``path`` is a directory with nothing in it: an output may take its place."""
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def sync_directory(path: str) -> None:
    """Make renames in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
