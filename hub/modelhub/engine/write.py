"""Carries out what a format's ``create`` lays out: copies extents kernel-side, streams expressions, encodes, checksums; in
parallel.

The generator runs in the calling thread and is answered at once: a tensor's size follows from its dtype and shape, so the next
one's place is known before the bytes of this one have moved. Threads then fill the places in.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import zlib
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import lcm
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.checksums import crc32c
from modelhub.declared import Format, ProgramResult
from modelhub.engine.cast import cast_source, encoder_of
from modelhub.engine.copy import copy_range, pwrite_all, shares_blocks, write_array
from modelhub.engine.errors import ErrorSums
from modelhub.engine.grid import Grid, GridReader, grid_of
from modelhub.engine.values import CHUNK, Handles
from modelhub.errors import ConversionError, ModelhubError, PluginError
from modelhub.table import Table
from modelhub.types import CopyFile, Extent, Patch, Placed, Put, StartFile, Tail, Tensor, Value, WriteOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE = 64 << 20
"""A tensor larger than this is filled in by several tasks."""
CHECKSUMS: Mapping[str, Callable[[Any, int], int]] = {"crc32": zlib.crc32, "crc32c": crc32c}
"""What a `Put` may ask for; each goes on from what came to its second argument."""
FLUSH_EVERY = 256 << 20
"""Write-back is started while copying goes on, so that the last fsync has little left to do."""


@dataclass(slots=True)
class Written:
    """What stands on the disk now: ``files`` in the order they were begun, relative to the output's directory; error sums by the
    names of encoded tensors; with ``check``, the pieces (file, offset, nbytes) of each tensor that were read back and found as
    they should be. ``values``: what the writer put under each name. ``seconds``: what the threads spent on reading, encoding and
    writing (read back included) of what was not copied as it is, summed over them. ``result``: what a program had to say."""

    files: list[str] = field(default_factory=list)
    errors: dict[str, ErrorSums] = field(default_factory=dict)
    checked: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    nbytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    result: ProgramResult | None = None


Progress = Callable[[int], None]


class Stopped(Exception):
    """Another task failed; this one gave up."""


def write_checkpoint(
    format: Format,
    table: Table,
    output: str,
    options: WriteOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    handles: Handles | None = None,
    sync: bool = True,
    check: bool = False,
) -> Written:
    """Write ``table`` as ``format`` to ``output`` (a file, or a directory where the format is one), fsynced; with ``check``,
    every chunk of a tensor is read back from it and compared.

    ``progress`` is called with numbers of bytes, from several threads. Nothing is renamed or verified here. Raises
    ConversionError where the disk is full or a tensor cannot be had; what was written until then is left for the caller to
    throw away.
    """
    if format.create is None:
        raise ConversionError(f"{format.title} can be read but not written", format.unavailable.get("create", ""))
    directory = output if not format.extension else os.path.dirname(output)
    os.makedirs(directory, exist_ok=True)
    own = handles is None
    handles = handles or Handles(scratch=directory)
    options = options or WriteOptions(name=os.path.splitext(os.path.basename(output))[0])
    work = _Work(directory, os.path.basename(output), handles, threads or os.cpu_count() or 1, progress, check)
    try:
        _drive(format, table, options, work)
        work.finish(sync)
        handles.check_unchanged()
    except OSError as error:
        work.stop.set()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConversionError(f"{directory}: the disk is full", "free some space, or name another place with -o") from error
        raise ConversionError(f"writing {output} failed: {error.strerror or error}") from error
    finally:
        work.close()
        if own:
            handles.close()
    return work.written


def _drive(format: Format, table: Table, options: WriteOptions, work: _Work) -> None:
    assert format.create is not None
    writer = format.create(table, options)
    answer: Placed | None = None
    try:
        while True:
            piece = writer.send(answer)
            answer = None
            if work.stop.is_set():
                work.raise_failure()
            match piece:
                case bytes():
                    work.file.append(piece)
                case Put():
                    answer = work.put(piece)
                case StartFile():
                    work.start(piece.name)
                case Patch() | Tail():
                    work.file.late.append(piece)
                case CopyFile():
                    work.copy(piece)
                case _:
                    raise PluginError(f"the writer of {format.name} yielded {type(piece).__name__}: not a piece of a file")
    except StopIteration:
        return
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class _Part:
    """Granules ``start``..``stop`` of what a tensor is made of, and where their bytes go in the file."""

    tensor: Tensor
    grid: Grid
    start: int
    stop: int
    offset: int


class _OutFile:
    """One output file: where its end is, what is still to be patched. Small literal pieces are gathered into one write."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.end = 0
        self.late: list[Patch | Tail] = []
        self.puts: list[tuple[int, int]] = []
        self._pending = bytearray()

    def append(self, data: bytes) -> None:
        self._pending += data
        self.end += len(data)
        if len(self._pending) > 1 << 20:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            pwrite_all(self.fd, memoryview(self._pending), self.end - len(self._pending))
            self._pending = bytearray()

    def reserve(self, nbytes: int, align: int) -> int:
        """The offset of ``nbytes`` that a task will fill in; zeros up to it."""
        if pad := -self.end % max(1, align):
            self.append(bytes(pad))
        self.flush()
        offset = self.end
        self.end += nbytes
        self.puts.append((offset, nbytes))
        return offset

    def patch(self, piece: Patch) -> None:
        """Overwrite bytes that are no tensor's, before the end."""
        data = piece.data()
        stop = piece.offset + len(data)
        inside = piece.offset >= 0 and stop <= self.end
        at = bisect(self.puts, (stop, -1)) - 1  # puts stand in the order of their offsets: the last that starts before the stop
        while at >= 0 and not self.puts[at][1]:
            at -= 1
        if not inside or (at >= 0 and sum(self.puts[at]) > piece.offset):
            raise PluginError(f"a writer patches bytes {piece.offset} to {stop}, which are a tensor's or beyond the end")
        pwrite_all(self.fd, memoryview(data), piece.offset)


class _Work:
    """The threads, the files, and the tasks of one output."""

    def __init__(self, directory: str, name: str, handles: Handles, threads: int, progress: Progress | None, check: bool) -> None:
        self.directory, self.name, self.handles, self.progress = directory, name, handles, progress
        self.written = Written()
        self.check = check
        self.kernel = shares_blocks(directory)
        self.stop = threading.Event()
        self._files: list[_OutFile] = []
        self._tasks: list[Future[Any]] = []
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="modelhub-write")
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="modelhub-flush")
        self._lock = threading.Lock()
        self._unflushed = 0

    @property
    def file(self) -> _OutFile:
        if not self._files:
            self.start("")
        return self._files[-1]

    def start(self, name: str) -> None:
        relative = os.path.normpath(name or self.name)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == "..":
            raise PluginError(f"a writer wants to write outside of its output: {name!r}")
        path = os.path.join(self.directory, relative)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if self._files:
            self._files[-1].flush()
        self._files.append(_OutFile(path))
        self.written.files.append(relative)

    def copy(self, piece: CopyFile) -> None:
        size = self.handles.size(piece.source)
        self.start(piece.name)
        self.put(Put(Tensor(piece.name, "U8", (size,), Extent(piece.source, 0, size))))

    def put(self, piece: Put) -> Placed:
        tensor, file = piece.tensor, self.file
        nbytes = dtypes.get(tensor.dtype).nbytes(tensor.shape)
        if tensor.value is None:
            raise ConversionError(f"tensor {tensor.name} cannot be converted: {tensor.unsupported}")
        if isinstance(tensor.value, Extent) and tensor.value.nbytes != nbytes:
            raise ConversionError(
                f"tensor {tensor.name}: {tensor.dtype} {list(tensor.shape)} takes {nbytes} bytes, {tensor.value.nbytes} stored"
            )
        offset = file.reserve(nbytes, piece.align)
        self.written.values[tensor.name] = tensor.value
        if piece.checksum and piece.checksum not in CHECKSUMS:
            raise PluginError(f"checksum {piece.checksum!r} is not known; use {' or '.join(CHECKSUMS)}")
        if not nbytes:
            return Placed(offset, 0, lambda: 0)
        if piece.checksum:
            grid = grid_of(cast_source(tensor)[1])
            task = self._pool.submit(self._fill, _Part(tensor, grid, 0, grid.count, offset), file, piece.checksum)
            self._tasks.append(task)
            return Placed(offset, nbytes, task.result)
        for part in self._parts(tensor, offset):
            self._tasks.append(self._pool.submit(self._fill, part, file, ""))
        return Placed(offset, nbytes, _unasked)

    def _parts(self, tensor: Tensor, offset: int) -> Iterator[_Part]:
        """A large tensor in slices that can be filled in at once; any other, and one that can only be read in order, whole."""
        source = cast_source(tensor)[1]
        grid = grid_of(source)
        have, want = dtypes.get(source.dtype), dtypes.get(tensor.dtype)
        unit = (tensor.shape[-1] if tensor.shape else 1) if want.rowwise else lcm(have.block, want.block)
        step = grid.step(PIECE, unit) if grid.seekable and grid.count * grid.nbytes > PIECE else grid.count
        for start in range(0, grid.count, step):
            yield _Part(
                tensor,
                grid,
                start,
                min(grid.count, start + step),
                offset + start * grid.elements // want.block * want.block_bytes,
            )

    def _fill(self, part: _Part, file: _OutFile, checksum: str) -> int:
        """Write one part's bytes; their checksum where asked for."""
        crc = 0
        tensor, grid, at = part.tensor, part.grid, part.offset
        dtype = dtypes.get(tensor.dtype)
        nbytes = (part.stop - part.start) * grid.elements // dtype.block * dtype.block_bytes
        what = f"tensor {tensor.name}"
        sums = None
        try:
            if isinstance(tensor.value, Extent) and not checksum:
                fd, extent = self.handles.fd(tensor.value.file), tensor.value
                start = extent.offset + part.start * grid.nbytes
                steps = copy_range(fd, start, file.fd, at, nbytes, extent.file, kernel=self.kernel, check=self.check)
                for n in steps:
                    self._did(n, file)
                at += nbytes
            else:
                sums = ErrorSums() if cast_source(tensor)[0] else None
                for chunk in self._chunks(part, sums):
                    if checksum:
                        crc = CHECKSUMS[checksum](chunk.data, crc)
                    stamp = time.perf_counter()
                    write_array(file.fd, chunk, at, what, self.check)
                    self._spent("write", stamp)
                    at += len(chunk)
                    self._did(len(chunk), file)
            if at - part.offset != nbytes:
                raise ConversionError(f"{what}: {at - part.offset} bytes came of {nbytes}")
            with self._lock:
                if sums is not None:
                    self.written.errors.setdefault(tensor.name, ErrorSums()).add(sums)
                if self.check:
                    self.written.checked.setdefault(tensor.name, []).append((file.path, part.offset, nbytes))
        except Stopped:
            raise
        except BaseException:
            self.stop.set()
            raise
        return crc

    def _chunks(self, part: _Part, sums: ErrorSums | None) -> Iterator[NDArray[np.uint8]]:
        """The part's bytes as they are to be written, a slice at a time."""
        encoder = None if sums is None else encoder_of(part.tensor, self.handles, sums)[0]
        reader = GridReader(part.grid, self.handles)
        unit = encoder.unit if encoder else 1
        step = part.grid.step(CHUNK if part.grid.tile == 0 else min(CHUNK, part.grid.tile), unit)
        matrix, matrices = part.grid.count, 1
        if encoder and encoder.importance is not None and len(encoder.importance) > 1:
            matrices = len(encoder.importance)
            matrix = part.grid.count // matrices
            if part.grid.count % matrices:
                raise ConversionError(f"tensor {part.tensor.name}: {part.grid.count} slices for {matrices} matrices with weights")
        start = part.start
        while start < part.stop:
            stop = min(part.stop, start + step, (start // matrix + 1) * matrix)
            stamp = time.perf_counter()
            data = reader.read(start, stop)
            self._spent("read", stamp)
            if encoder:
                stamp = time.perf_counter()
                data = encoder.encode(data, start // matrix, start * part.grid.elements)
                self._spent("encode", stamp)
            yield data
            start = stop

    def _spent(self, what: str, since: float) -> None:
        seconds = time.perf_counter() - since
        with self._lock:
            self.written.seconds[what] = self.written.seconds.get(what, 0.0) + seconds

    def _did(self, nbytes: int, file: _OutFile) -> None:
        if self.stop.is_set():
            raise Stopped
        if self.progress:
            self.progress(nbytes)
        with self._lock:
            self.written.nbytes += nbytes
            self._unflushed += nbytes
            flush = self._unflushed >= FLUSH_EVERY
            if flush:
                self._unflushed = 0
        if flush:
            self._flusher.submit(os.fdatasync, file.fd)

    def raise_failure(self) -> None:
        """Raise the error of the first task that failed by itself."""
        self.stop.set()
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) and not isinstance(error, Stopped):
                raise error

    def finish(self, sync: bool) -> None:
        """Wait for the tasks, then patch, append the tails, and fsync."""
        wait(self._tasks, return_when=FIRST_EXCEPTION)
        self.raise_failure_if_any()
        for file in self._files:
            file.flush()
            for late in file.late:
                if isinstance(late, Patch):
                    file.patch(late)
                else:
                    file.append(late.data())
            file.flush()
            os.ftruncate(file.fd, file.end)
        if sync:
            for file in self._files:
                os.fsync(file.fd)

    def raise_failure_if_any(self) -> None:
        if self.stop.is_set() or any(task.done() and task.exception() for task in self._tasks):
            self.raise_failure()
            raise ModelhubError("the conversion was stopped")

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._flusher.shutdown(wait=True, cancel_futures=True)
        for file in self._files:
            os.close(file.fd)


def _unasked() -> int:
    raise PluginError("a writer asked for a checksum that its Put did not order")
