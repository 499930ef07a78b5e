"""Moving bytes between open files: ``copy_file_range`` where the file system can share blocks, else through a buffer that fits
the cache.

Elsewhere (ext4, say) the kernel's own copy goes page by page through a pipe, and takes more time than a read and a write of 256
KiB (benchmarks/README.md).

With ``check``, what was written is read back and compared with what was to be written, chunk by chunk, while both are still in
the processor's cache: that costs a third of comparing the files afterwards.

Bytes that are copied as they are go through plain buffers, whose equality is a ``memcmp``: NumPy, a twentieth of a second to
import, is for what is computed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelhub.engine.values import pread_into
from modelhub.errors import ModelhubError, VerificationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP = 256 << 10
"""Bytes that go through a buffer at a time: two of them fit the second-level cache of one core."""
KERNEL_STEP = 16 << 20
"""Bytes of one ``copy_file_range``: short enough to be interrupted and to show progress."""
NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF}
SHARES_BLOCKS = frozenset({"btrfs", "xfs", "bcachefs", "zfs", "ocfs2", "apfs", "nfs4", "cifs", "smb3", "ceph"})
"""File systems whose ``copy_file_range`` may share blocks, or copy on the server: nothing is faster than not copying."""

_buffers = threading.local()


def shares_blocks(path: str) -> bool:
    """Whether the file system at ``path`` may copy a range without moving its bytes through this machine's memory."""
    from modelhub.mounts import mount_of

    mount = mount_of(path)
    return mount is not None and mount.type in SHARES_BLOCKS


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def write_array(fd: int, data: NDArray[np.uint8], offset: int, what: str, check: bool) -> None:
    """Write ``data`` at ``offset``; with ``check``, read it back. VerificationError where other bytes come back."""
    view = data.data
    if not check:
        pwrite_all(fd, view, offset)
        return
    import numpy as np

    for start in range(0, len(data), STEP):
        piece = data[start : start + STEP]
        pwrite_all(fd, piece.data, offset + start)
        back = np.frombuffer(_buffer("back"), np.uint8)[: len(piece)]
        pread_into(fd, back.data, offset + start, what)
        if not np.array_equal(*((piece.view("u8"), back.view("u8")) if len(piece) % 8 == 0 else (piece, back))):
            raise _differs(what)


def confirm(fd: int, data: bytearray, offset: int, what: str) -> None:
    """Read back ``data`` (at most `STEP` bytes) at ``offset``. VerificationError where other bytes come back."""
    back = _buffer("back") if len(data) == STEP else bytearray(len(data))
    pread_into(fd, memoryview(back), offset, what)
    if back != data:
        raise _differs(what)


def _differs(what: str) -> VerificationError:
    return VerificationError(f"{what} reads back with other bytes than were written", "the disk or the memory may be failing")


def _buffer(name: str) -> bytearray:
    """A buffer of `STEP` bytes of this thread's own."""
    found: bytearray | None = getattr(_buffers, name, None)
    if found is None:
        found = bytearray(STEP)
        setattr(_buffers, name, found)
    return found


def copy_range(
    source: int, start: int, target: int, offset: int, nbytes: int, what: str, *, kernel: bool, check: bool = False
) -> Iterator[int]:
    """Copy bytes between open files; yields the bytes of each step. ``kernel``: try ``copy_file_range`` first."""
    done = 0
    while kernel and done < nbytes:
        try:
            n = os.copy_file_range(source, target, min(nbytes - done, KERNEL_STEP), start + done, offset + done)
        except OSError as error:
            if error.errno not in NO_KERNEL_COPY:
                raise
            break
        if n == 0:  # the end of the file, or a file system that only pretends: a read tells which
            break
        for at in range(done, done + n if check else done, STEP):
            size = min(STEP, done + n - at)
            confirm(target, _read(source, start + at, size, what), offset + at, what)
        done += n
        yield n
    while done < nbytes:
        size = min(STEP, nbytes - done)
        piece = _read(source, start + done, size, what)
        pwrite_all(target, memoryview(piece), offset + done)
        if check:
            confirm(target, piece, offset + done, what)
        done += size
        yield size


def _read(fd: int, offset: int, nbytes: int, what: str) -> bytearray:
    piece = _buffer("piece") if nbytes == STEP else bytearray(nbytes)
    try:
        pread_into(fd, memoryview(piece), offset, what)
    except ModelhubError as error:
        raise ModelhubError(f"{error.message} while being read", error.hint) from error
    return piece
