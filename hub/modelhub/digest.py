"""SHA-256 of files and of tensors.

A file's digest is that of its bytes, taken only while its stat stands still. A tensor's digest is SHA-256 over its dtype, shape
and little-endian C-order bytes, 16 bytes kept: equal for equal weights, whatever the container.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from modelhub.engine.values import Handles, tensor_chunks
from modelhub.errors import ModelhubError, SourceChanged
from modelhub.files import open_regular
from modelhub.types import Tensor

BUFFER = 1 << 20
DIGEST_BYTES = 16
UNKNOWN = bytes(DIGEST_BYTES)
"""Stands for a tensor whose digest nobody has taken yet."""
CONSTANT = b"\xff" * DIGEST_BYTES
"""Stands for a tensor whose elements are all the same: it says nothing of where it came from."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256 of a file (32 bytes), with the stat it holds for."""

    path: str
    sha256: bytes
    stat: os.stat_result


def digest_file(path: str, progress: Progress | None = None) -> FileDigest:
    """Hash one file. ModelhubError where it cannot be read, or changed meanwhile."""
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            state, buffer, done = hashlib.sha256(), bytearray(BUFFER), 0
            view = memoryview(buffer)
            while done <= before.st_size and (n := file.readinto(buffer)):  # one that grows as fast as it is read has no end
                state.update(view[:n])
                done += n
                if progress:
                    progress(n)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ModelhubError(f"cannot read {path}: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ino,
    ) or done != after.st_size:
        raise SourceChanged(f"{path} changed while it was being hashed", "try again once nothing writes to it")
    return FileDigest(path, state.digest(), after)


class Hashing:
    """Files hashed ahead, on all cores, whatever order their digests are asked for in. A context manager; leaving it stops what
    still runs."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="modelhub-hash")
        self._running: dict[str, Future[FileDigest]] = {}
        self._progress = progress
        self._stop = threading.Event()

    def ahead(self, paths: Iterable[str]) -> None:
        """Start hashing ``paths``, as many at a time as there are cores."""
        for path in paths:
            if path not in self._running:
                self._running[path] = self._pool.submit(digest_file, path, self._tell)

    def digest(self, path: str) -> FileDigest:
        """The digest of ``path``; waits for it. ModelhubError where it cannot be read, or changed meanwhile."""
        self.ahead((path,))
        return self._running[path].result()

    def _tell(self, nbytes: int) -> None:
        if self._stop.is_set():
            raise ModelhubError("hashing was stopped")
        if self._progress:
            self._progress(nbytes)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def digest_tensor(tensor: Tensor, handles: Handles, progress: Progress | None = None) -> bytes:
    """The tensor's 16 bytes; `CONSTANT` where all its elements are the same, `UNKNOWN` where its value cannot be had."""
    if tensor.value is None:
        return UNKNOWN
    state = hashlib.sha256(f"{tensor.dtype} {','.join(map(str, tensor.shape))}\n".encode())
    first, constant = b"", True
    for chunk in tensor_chunks(tensor, handles):
        data = chunk.data
        state.update(data)
        if not first:
            first = bytes(data[:16])
        # Equal elements make the bytes repeat with a period of 16 (all element sizes divide it).
        if constant and bytes(data[: 1 << 12]) == (first * (1 + (1 << 12) // max(1, len(first))))[: min(len(data), 1 << 12)]:
            constant = len(data) <= 16 or data[16:] == data[:-16]
        else:
            constant = False
        if progress:
            progress(len(data))
    return CONSTANT if constant else state.digest()[:DIGEST_BYTES]


def digest_tensors(tensors: Sequence[Tensor], progress: Progress | None = None) -> list[bytes]:
    """Digests of several tensors, on all cores, in their order."""
    workers = max(1, min(len(tensors), os.cpu_count() or 1))
    with Handles() as handles, ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda tensor: digest_tensor(tensor, handles, progress), tensors))
        handles.check_unchanged()
    return found
