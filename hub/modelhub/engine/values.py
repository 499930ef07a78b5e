"""Reading a tensor's value: extents by ``pread``, expressions by asking their ops for rows.

A `Source` is one value opened for reading. It belongs to one thread at a time (ops keep a position in it); the file handles
under it are shared. Nothing here knows a file format.
"""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelhub import dtypes, ops
from modelhub.errors import IncompleteFile, InvalidFile, ModelhubError, SourceChanged
from modelhub.files import open_regular
from modelhub.types import Extent, Inline, Node, Tensor, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 8 << 20
"""Bytes of a tensor that are worked on at a time, by each thread."""


class Handles:
    """Open files by path, for all threads of one piece of work. Notices a file that changed while it was open."""

    def __init__(self, scratch: str | None = None) -> None:
        self._open: dict[str, tuple[int, tuple[int, int, int]]] = {}
        self._lock = threading.Lock()
        self.scratch = scratch
        """Where streams that cannot seek are spooled (default: the system's temporary directory)."""

    def fd(self, path: str) -> int:
        entry = self._open.get(path)
        if entry is None:
            with self._lock:
                entry = self._open.get(path)
                if entry is None:
                    try:
                        fd = _opened(path)
                    except OSError as error:
                        raise ModelhubError(f"cannot read {path}: {error.strerror}") from error
                    entry = self._open[path] = (fd, _identity(fd))
        return entry[0]

    def size(self, path: str) -> int:
        self.fd(path)
        return self._open[path][1][0]

    def check_unchanged(self) -> None:
        """Raises where a file changed since it was opened: what was read of it may be half old, half new."""
        for path, (fd, before) in self._open.items():
            if _identity(fd) != before:
                raise SourceChanged(f"{path} changed while it was being read", "try again once nothing writes to it")

    def close(self) -> None:
        for fd, _ in self._open.values():
            os.close(fd)
        self._open.clear()

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _opened(path: str) -> int:
    """A handle for reading. Where so many are open that a shell's usual limit is reached, this process may have more of them."""
    try:
        return open_regular(path)
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return open_regular(path)


def _identity(fd: int) -> tuple[int, int, int]:
    info = os.fstat(fd)
    return info.st_size, info.st_mtime_ns, info.st_ino


def pread_into(fd: int, buffer: memoryview, offset: int, what: str) -> None:
    """Fill ``buffer`` from ``offset``; IncompleteFile where the file ends before."""
    got = 0
    while got < len(buffer):
        n = os.preadv(fd, [buffer[got:]], offset + got)
        if n == 0:
            raise IncompleteFile(f"{what}: {len(buffer)} bytes at offset {offset} expected, {got} found: it was truncated")
        got += n


class Source(ABC):
    """A value open for reading: ``dtype``, ``shape``, ``read(start, stop)`` for rows; ``state`` is its op's to use."""

    seekable = True

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self.state: dict[str, Any] = {}

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start``..``stop``, as stored units."""

    def spooled(self) -> Source:
        return self


class RunSource(Source):
    """Bytes of a file, or of memory: dtype U8, one dimension."""

    def __init__(self, value: Extent | Inline, handles: Handles) -> None:
        super().__init__("U8", (value.nbytes if isinstance(value, Extent) else len(value.data),))
        self.value, self.handles = value, handles

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        if not 0 <= start <= stop <= self.shape[0]:
            raise InvalidFile(f"bytes {start} to {stop} of a run of {self.shape[0]}")
        if isinstance(self.value, Inline):
            return np.frombuffer(self.value.data, np.uint8)[start:stop]
        out = np.empty(stop - start, np.uint8)
        pread_into(self.handles.fd(self.value.file), out.data, self.value.offset + start, self.value.file)
        return out


class NodeSource(Source):
    """An op applied to sources."""

    def __init__(self, node: Node, handles: Handles, depth: int) -> None:
        super().__init__(node.dtype, node.shape)
        self.node, self.handles, self.op = node, handles, ops.get(node.op)
        self.inputs = [open_value(value, handles, depth + 1) for value in node.inputs]
        self.seekable = self.op.seekable and all(source.seekable for source in self.inputs)
        self._position = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        if not self.op.seekable or start < self._position:
            self.inputs = [source.spooled() for source in self.inputs]
        self._position = start
        # What NaN and infinity in a file do to sums is to be found in the output: nobody else is to hear of it.
        with np.errstate(all="ignore"):
            rows: NDArray[Any] = self.op.rows(self.inputs, self.node.args, start, stop)
        return rows

    def spooled(self) -> Source:
        if self.seekable:
            return self
        # An unnamed file: it goes with the process, however that ends. It keeps its descriptor through the array's base.
        file = tempfile.TemporaryFile(dir=self.handles.scratch, prefix=".modelhub-")  # noqa: SIM115 - the source that is returned owns it
        for chunk in chunks(self):
            file.write(chunk.data.cast("B"))
        file.flush()
        return SpooledSource(self, file)


class SpooledSource(Source):
    """Rows of a stream that were written to a temporary file."""

    def __init__(self, origin: Source, file: Any) -> None:
        super().__init__(origin.dtype, origin.shape)
        self._file = file
        self._row = dtypes.get(origin.dtype).nbytes(origin.shape[1:] if origin.shape else ())

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        out = np.empty((stop - start) * self._row, np.uint8)
        pread_into(self._file.fileno(), out.data, start * self._row, "a spooled stream")
        unit = np.dtype(dtypes.get(self.dtype).numpy or "u1")
        return out.view(unit).reshape((stop - start, *self.shape[1:]) if self.shape else ())


def open_value(value: Value, handles: Handles, depth: int = 0) -> Source:
    """Open ``value`` for reading. ModelhubError where the expression nests too deep."""
    if depth > ops.MAX_DEPTH:
        raise ModelhubError(f"an expression nests deeper than {ops.MAX_DEPTH}")
    if isinstance(value, Node):
        return NodeSource(value, handles, depth)
    return RunSource(value, handles)


def chunks(source: Source, limit: int = CHUNK, granule: int = 1) -> Iterator[NDArray[Any]]:
    """All rows of ``source`` in order, about ``limit`` bytes at a time, never less than ``granule`` rows (or bytes of a run)."""
    if not source.shape:
        yield source.read(0, 1)
        return
    count = source.shape[0]
    row = max(1, dtypes.get(source.dtype).nbytes(source.shape[1:])) if 0 not in source.shape else 1
    step = max(granule, limit // row // granule * granule)
    for start in range(0, count, step):
        yield source.read(start, min(count, start + step))


def tensor_chunks(tensor: Tensor, handles: Handles, limit: int = CHUNK) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes in order, C-contiguous ``uint8`` arrays of whole blocks of its dtype, about ``limit`` bytes each."""
    import numpy as np

    if tensor.value is None:
        raise ModelhubError(f"tensor {tensor.name} has no readable value: {tensor.unsupported}")
    dtype = dtypes.get(tensor.dtype)
    if not prod(tensor.shape):
        return
    source = open_value(tensor.value, handles)
    granule = dtype.block_bytes if isinstance(source, RunSource) else 1
    for chunk in chunks(source, limit, granule):
        yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)


def read_tensor(tensor: Tensor, handles: Handles | None = None) -> NDArray[np.uint8]:
    """All bytes of a tensor, little-endian and C order. For small tensors and tests: the whole tensor is in memory."""
    import numpy as np

    if handles is None:
        with Handles() as own:
            return read_tensor(tensor, own)
    parts = list(tensor_chunks(tensor, handles))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)
