"""Lets two equal files share their bytes on the drive: as one file with two names (a hard link), or as two files whose blocks are
shared until one of them is written to (a reflink). Compares first, always, and every byte.

Whatever happens, each name holds what it held: a name is exchanged, never emptied, and what was taken from it is looked at once
more before it is let go. Which files are worth it is `modelhub.prune`'s to say; the catalog is not known here.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Callable, Iterator

from modelhub.errors import ModelhubError
from modelhub.scratch import Scratch, exchange, sync_directory

PIECE = 4 << 20
"""Bytes of each file in memory at a time."""
DEDUPE_PIECE = 16 << 20
"""Bytes of one request; more is not looked at by the file systems that there are."""
MOST_EXTENTS = 65_536

# linux/fs.h, linux/fiemap.h
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FIDEDUPERANGE = 0xC0189436
_FIEMAP = 0xC020660B
_FIEMAP_SYNC, _EXTENT_LAST = 1, 1
_EXTENT_UNSURE = 0x2 | 0x4 | 0x100 | 0x200 | 0x400  # unknown, delayed, not aligned, inline, tail
_F_SETSIG = 10  # asm-generic/fcntl.h; Python names it from 3.14 on
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EPERM}

Progress = Callable[[int], None]
"""Told of bytes that were compared."""


class Refused(ModelhubError):
    """These two are left as they are; nothing was changed."""

    code = "refused"


class Pair:
    """Two files that are there, opened: what shall be ``kept``, and what shall share its bytes (``other``). A context manager."""

    def __init__(self, kept: str, other: str) -> None:
        self.kept, self.other = kept, other
        with contextlib.ExitStack() as stack:
            self.fds = tuple(_open(path, stack) for path in (kept, other))
            self.before = tuple(map(os.fstat, self.fds))
            self._stack = stack.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def compare(self, progress: Progress | None = None) -> None:
        """Read both to their ends. Refused where one byte differs, or either of them changed meanwhile."""
        if self.before[0].st_size != self.before[1].st_size:
            raise Refused(f"{self.other} and {self.kept} have not the same size")
        one, other = self.fds
        done, size = 0, self.before[0].st_size
        while done < size:
            here, there = os.pread(one, PIECE, done), os.pread(other, PIECE, done)
            length = min(len(here), len(there))
            if not length or here[:length] != there[:length]:
                raise Refused(f"{self.other} and {self.kept} differ within bytes {done:,} to {done + PIECE:,}")
            done += length
            if progress:
                progress(length)
        self.check()

    def check(self) -> None:
        """Refused where either of them is not what it was any more, or somebody has it open to write to it."""
        for path, fd, before in zip((self.kept, self.other), self.fds, self.before, strict=True):
            if _identity(os.fstat(fd)) != _identity(before) or _identity(os.lstat(path)) != _identity(before):
                raise Refused(f"{path} has changed meanwhile")
            if is_written_to(fd):
                raise Refused(f"{path} is open for writing")

    def hard_link(self) -> None:
        """Let the name ``other`` be another name of the file ``kept``."""
        one, two = self.before
        if (one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode)) != (two.st_uid, two.st_gid, stat.S_IMODE(two.st_mode)):
            raise Refused(f"{self.other} and {self.kept} have not the same owner and mode, and one file has one of each")
        with self._beside() as scratch:
            temporary = os.path.join(scratch.path, "linked")
            os.link(self.kept, temporary, follow_symlinks=False)
            if not os.path.samestat(os.lstat(temporary), one):
                raise Refused(f"{self.kept} has changed meanwhile")
            self._swap(temporary)

    def reflink(self) -> str:
        """Let ``other`` share the blocks of ``kept``; "in place" where it stayed the file that it is, "copy" where it is a new
        one with the old one's owner, mode and times. OSError where the file system cannot."""
        if self._dedupe():
            return "in place"
        with self._beside() as scratch:
            temporary = os.path.join(scratch.path, "cloned")
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.ioctl(fd, _FICLONE, self.fds[0])
                _dress(fd, self.fds[1], self.before[1])
                os.fsync(fd)
            finally:
                os.close(fd)
            self._swap(temporary)
        return "copy"

    @contextlib.contextmanager
    def _beside(self) -> Iterator[Scratch]:
        with Scratch(os.path.dirname(self.other)) as scratch:
            yield scratch

    def _swap(self, temporary: str) -> None:
        """Give ``temporary`` the name ``other``. What had it is looked at once more, now that nobody can open it by its name, and
        gets it back where it changed."""
        self.check()
        try:
            exchange(temporary, self.other)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            os.rename(temporary, self.other)  # a file system that can only do this; the check was a moment ago
            sync_directory(os.path.dirname(self.other))
            return
        settled = False
        try:
            settled = _identity(os.lstat(temporary)) == _identity(self.before[1]) and not is_written_to(self.fds[1])
            if not settled:
                raise Refused(f"{self.other} has changed meanwhile")
            sync_directory(os.path.dirname(self.other))
        finally:
            if not settled:
                try:
                    exchange(temporary, self.other)
                except OSError:
                    os.rename(temporary, self.other)

    def _dedupe(self) -> bool:
        """Have the file system compare and share, piece by piece; False where it cannot. What was shared stays shared."""
        one, other = self.fds
        size, done = self.before[0].st_size, 0
        while done < size:
            length = min(DEDUPE_PIECE, size - done)
            request = bytearray(struct.pack("=QQHHIqQQiI", done, length, 1, 0, 0, other, done, 0, 0, 0))
            try:
                fcntl.ioctl(one, _FIDEDUPERANGE, request)
            except OSError as error:
                if error.errno in _CANNOT:
                    return False
                raise
            shared, status = struct.unpack_from("=Qi", request, 40)
            if status == 1:  # FILE_DEDUPE_RANGE_DIFFERS
                raise Refused(f"{self.other} has changed meanwhile")
            if status or not shared:
                if not status or -status in _CANNOT:
                    return False
                raise OSError(-status, os.strerror(-status), self.other)
            done += shared
        return True


def is_written_to(fd: int) -> bool:
    """Whether any process has the file open for writing: a read lease (fcntl(2), F_SETLEASE) is given only where none has. False
    where the file system, or another's ownership, does not let us know."""
    try:
        # Somebody who opens it at this very moment has us told by a signal, which would end us if it were the usual one.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def can_reflink(path: str) -> bool:
    """Whether the file system of ``path`` (a file) lets files share blocks: tried with one block of it and a file without a name,
    which is gone at once. False where that cannot be tried."""
    directory = os.path.dirname(path)
    with contextlib.ExitStack() as stack:
        try:
            source = _open(path, stack)
            target = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, target)
            block = os.statvfs(directory).f_bsize
            if os.fstat(source).st_size < block:
                fcntl.ioctl(target, _FICLONE, source)
            else:
                fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, 0, block, 0))
        except (OSError, Refused):
            return False
    return True


def share_blocks(one: str, other: str) -> bool:
    """Whether two files of the same size have the same blocks already. False where that cannot be told."""
    with contextlib.ExitStack() as stack:
        try:
            here, there = (_blocks(_open(path, stack)) for path in (one, other))
        except (OSError, Refused):
            return False
    return bool(here) and here == there


def _blocks(fd: int) -> list[tuple[int, int, int]] | None:
    """(where in the file, where on the device, bytes) of each run of blocks; None where it is not sure."""
    room = 256
    found: list[tuple[int, int, int]] = []
    start = 0
    while len(found) < MOST_EXTENTS:
        request = array.array(
            "B", struct.pack("=QQIIII", start, (1 << 64) - 1 - start, _FIEMAP_SYNC, 0, room, 0) + bytes(56 * room)
        )
        fcntl.ioctl(fd, _FIEMAP, request)
        (count,) = struct.unpack_from("=I", request, 20)
        if not count:
            return found
        for number in range(count):
            logical, physical, length, _, _, flags = struct.unpack_from("=QQQQQI", request, 32 + 56 * number)
            if flags & _EXTENT_UNSURE:
                return None
            last = found[-1] if found else None
            if last and (last[0] + last[2], last[1] + last[2]) == (logical, physical):
                found[-1] = (last[0], last[1], last[2] + length)
            else:
                found.append((logical, physical, length))
            start = logical + length
            if flags & _EXTENT_LAST:
                return found
    return None


def _open(path: str, stack: contextlib.ExitStack) -> int:
    """A regular file, opened for reading; no link, and nothing that an open would wait for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(f"{path} is a symbolic link; what it leads to is left alone") from error
        raise
    stack.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Refused(f"{path} is no regular file")
    return fd


def _identity(info: os.stat_result) -> tuple[int, ...]:
    """What must stand still. Not ctime and the number of links: our own linking changes those of what is kept."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_mode, info.st_uid, info.st_gid


def _dress(fd: int, like: int, info: os.stat_result) -> None:
    """Give a new file the owner, mode, extended attributes and times of another."""
    if (os.geteuid(), os.getegid()) != (info.st_uid, info.st_gid):
        os.fchown(fd, info.st_uid, info.st_gid)
    for name in os.listxattr(like):
        os.setxattr(fd, name, os.getxattr(like, name))
    os.fchmod(fd, stat.S_IMODE(info.st_mode))
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))
