"""Lays out checkpoints of the second version: data files from the engine, and an index of their places and checksums from here.

Variables stand under their names, as ``tf.compat.v1.train.Saver`` stores them and ``tf.train.load_checkpoint`` finds them; there
is no graph of objects, since nothing says which objects they belong to. Facts: as in `modelhub_tensorflow.bundle` and
`modelhub_tensorflow.sorted_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from modelhub import ModelhubError, Placed, Put, StartFile, Table, Tail, Tensor, WriteOptions, Writer, dtypes

from modelhub_tensorflow import bundle, elements, sorted_table
from modelhub_tensorflow.bundle import INDEX

_VERSION = 1
"""``kTensorBundleVersion``: the least that readers ask for is 0."""


def create(table: Table, options: WriteOptions) -> Writer:
    """``NAME.index`` and ``NAME.data-00000-of-0000n``: one data file, or as many as ``options.max_shard_size`` asks for.
    `ModelhubError` where a name or a dtype cannot be stored."""
    tensors = [tensor for tensor in table.logical if tensor.value is not None]
    _check(tensors)
    shards = list(_split(tensors, options.max_shard_size)) or [[]]
    if len(shards) > bundle.MAX_SHARDS:
        raise ModelhubError(f"that would be {len(shards)} data files, at most {bundle.MAX_SHARDS} are read", "ask for more")
    placed: list[tuple[bytes, Tensor, int, Placed]] = []
    for number, shard in enumerate(shards):
        yield StartFile(bundle.shard_name(options.name, number, len(shards)))
        for tensor in shard:
            place = yield Put(tensor, checksum="crc32c")
            assert place is not None
            placed.append((tensor.name.encode(), tensor, number, place))
    placed.sort(key=lambda item: item[0])
    yield StartFile(options.name + INDEX)
    yield Tail(_index(placed, len(shards)))


def _check(tensors: Sequence[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        name = tensor.name
        if tensor.dtype not in elements.NUMBERS:
            raise ModelhubError(
                f"TensorFlow cannot store {tensor.dtype} (tensor {name!r})", "choose a recipe, as in tensorflow:bf16"
            )
        if len(tensor.shape) > elements.MAX_RANK:
            raise ModelhubError(f"TensorFlow cannot store {len(tensor.shape)} dimensions (tensor {name!r})")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ModelhubError(f"the name {name!r} is not valid Unicode: TensorFlow cannot store it")
        if not name or name.startswith("\0") or name == bundle.GRAPH or len(name.encode()) > sorted_table.MAX_KEY:
            raise ModelhubError(f"TensorFlow cannot store a tensor called {name[:200]!r}: the index keeps other things there")
        if name in seen:
            raise ModelhubError(f"TensorFlow cannot store two tensors called {name!r}")
        seen.add(name)


def _split(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Fill each data file up to ``limit`` bytes; a tensor that is larger stands alone."""
    shard: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = dtypes.get(tensor.dtype).nbytes(tensor.shape)
        if shard and limit and size + nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    if shard:
        yield shard


def _index(placed: Sequence[tuple[bytes, Tensor, int, Placed]], shards: int) -> Callable[[], bytes]:
    def data() -> bytes:
        entries = [(b"", _number(1, shards) + _bytes(3, _number(1, _VERSION)) + _bytes(*bundle.OURS))]
        entries += [(name, _entry(tensor, shard, place)) for name, tensor, shard, place in placed]
        return sorted_table.build(entries)

    return data


def _entry(tensor: Tensor, shard: int, place: Placed) -> bytes:
    """A ``BundleEntryProto``."""
    sides = b"".join(_bytes(2, _number(1, side)) for side in tensor.shape)
    crc = sorted_table.mask(place.checksum() if place.nbytes else 0)
    return (
        _number(1, elements.NUMBERS[tensor.dtype])
        + _bytes(2, sides)
        + _number(3, shard)
        + _number(4, place.offset)
        + _number(5, place.nbytes)
        + b"\x35"
        + crc.to_bytes(4, "little")
    )


def _number(field: int, value: int) -> bytes:
    """A field of one number; a zero is left out, as protobuf has it."""
    return bytes([field << 3]) + sorted_table.as_varint(value) if value else b""


def _bytes(field: int, content: bytes) -> bytes:
    return sorted_table.as_varint(field << 3 | 2) + sorted_table.as_varint(len(content)) + content
