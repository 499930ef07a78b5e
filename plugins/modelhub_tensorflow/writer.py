"""Lays out checkpoints of the second version: data files from the engine, and an index of their places and checksums from here.

Variables stand under their names, as ``tf.compat.v1.train.Saver`` stores them and ``tf.train.load_checkpoint`` finds them. Names
with slashes are ways to objects, as TensorFlow writes them: such variables also stand under the keys that ``tf.train.Checkpoint``
goes by, the same bytes, with the graph of objects that the names make. What was a checkpoint before keeps its own keys and its
own graph (`Layout`). Facts: as in `modelhub_tensorflow.bundle` and `modelhub_tensorflow.sorted_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from modelhub import Extent, ModelhubError, Placed, Put, StartFile, Table, Tail, Tensor, WriteOptions, Writer, crc32c, dtypes

from modelhub_tensorflow import bundle, elements, object_graph, sorted_table
from modelhub_tensorflow.bundle import INDEX
from modelhub_tensorflow.messages import message, number

NATIVE = "tensorflow"
"""Where a `Layout` stands in a table's metadata."""
_VERSION = 1
"""``kTensorBundleVersion``: the least that readers ask for is 0."""


_Keys: TypeAlias = "Mapping[str, tuple[str, ...]]"
"""Under which keys a tensor stands, by its name."""


@dataclass(frozen=True, slots=True)
class Text:
    """A tensor of strings, whose bytes are carried over as they are. ``crc``: what the index has of them, masked."""

    key: str
    shape: tuple[int, ...]
    place: Extent
    crc: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint keeps that is made of another one. ``keys``: by the tensors' names; ``graph``: of objects, b"" where
    there was none; ``ours``: whether all tensors are the model's (`bundle.OURS`)."""

    keys: Mapping[str, str] = field(default_factory=dict)
    graph: bytes = b""
    texts: tuple[Text, ...] = ()
    ours: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index is to say of some bytes: a number of the type, a shape, a data file, a place in it."""

    number: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    crc: Callable[[], int]

    def encoded(self) -> bytes:
        """A ``BundleEntryProto``."""
        sides = b"".join(message(2, number(1, side)) for side in self.shape)
        place = number(3, self.shard) + number(4, self.offset) + number(5, self.nbytes)
        return number(1, self.number) + message(2, sides) + place + b"\x35" + self.crc().to_bytes(4, "little")


def create(table: Table, options: WriteOptions) -> Writer:
    """``NAME.index`` and ``NAME.data-00000-of-0000n``: one data file, or as many as ``options.max_shard_size`` asks for.
    `ModelhubError` where a name or a dtype cannot be stored."""
    tensors = [tensor for tensor in table.logical if tensor.value is not None]
    _check(tensors)
    layout = table.metadata.native.get(NATIVE)
    keys, graph, texts = _by_names(tensors) if layout is None else _kept(layout, tensors)
    _check_keys(keys, texts)
    shards = list(_split(tensors, options.max_shard_size)) or [[]]
    if len(shards) > bundle.MAX_SHARDS:
        raise ModelhubError(f"that would be {len(shards)} data files, at most {bundle.MAX_SHARDS} are read", "ask for more")
    entries: list[tuple[bytes, _Entry]] = []
    end = 0
    for shard, members in enumerate(shards):
        yield StartFile(bundle.shard_name(options.name, shard, len(shards)))
        end = 0
        for tensor in members:
            place = yield Put(tensor, checksum="crc32c")
            assert place is not None
            end = place.offset + place.nbytes
            entry = _Entry(elements.NUMBERS[tensor.dtype], tensor.shape, shard, place.offset, place.nbytes, _crc(place))
            entries += [(key.encode(), entry) for key in keys[tensor.name]]
    for text in texts:
        place = yield Put(Tensor(text.key, "U8", (text.place.nbytes,), text.place))
        assert place is not None
        end = place.offset + place.nbytes
        entry = _Entry(elements.STRING, text.shape, len(shards) - 1, place.offset, place.nbytes, _known(text.crc))
        entries.append((text.key.encode(), entry))
    if graph:
        stored, crc = _string(graph)
        yield stored
        entry = _Entry(elements.STRING, (), len(shards) - 1, end, len(stored), _known(crc))
        entries.append((bundle.GRAPH.encode(), entry))
    entries.sort(key=lambda item: item[0])
    yield StartFile(options.name + INDEX)
    yield Tail(_index(entries, len(shards), ours=layout is None or layout.ours))


def _by_names(tensors: Sequence[Tensor]) -> tuple[_Keys, bytes, tuple[Text, ...]]:
    """Each tensor under its name and, where names are TensorFlow's kind, under the key of an object that no other tensor is
    called after."""
    names = [tensor.name for tensor in tensors]
    if not any("/" in name for name in names):  # other libraries' names: nothing in TensorFlow has such attributes
        return {name: (name,) for name in names}, b"", ()
    taken = set(names)
    keys: _Keys = {name: (name, key) if (key := object_graph.key_of(name)) not in taken else (name,) for name in names}
    placed = [name for name in names if object_graph.key_of(name) in keys[name]]
    return keys, object_graph.from_names(placed), ()


def _kept(layout: Layout, tensors: Sequence[Tensor]) -> tuple[_Keys, bytes, tuple[Text, ...]]:
    """The keys and the graph that were there; what is not written any more is no value in it."""
    keys: _Keys = {tensor.name: (layout.keys.get(tensor.name, tensor.name),) for tensor in tensors}
    there = {key for some in keys.values() for key in some} | {text.key for text in layout.texts}
    graph = object_graph.without(layout.graph, set(layout.keys.values()) - there) if layout.graph else b""
    return keys, graph, layout.texts


def _crc(place: Placed) -> Callable[[], int]:
    return lambda: sorted_table.mask(place.checksum() if place.nbytes else 0)


def _known(crc: int) -> Callable[[], int]:
    return lambda: crc


def _string(text: bytes) -> tuple[bytes, int]:
    """A tensor that is one string, as it is stored, and the masked CRC-32C that the index has of it."""
    size = len(text).to_bytes(4, "little")
    first = sorted_table.masked(size).to_bytes(4, "little")
    return sorted_table.as_varint(len(text)) + first + text, sorted_table.mask(crc32c(text, crc32c(first, crc32c(size))))


def _check(tensors: Sequence[Tensor]) -> None:
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


def _check_keys(keys: _Keys, texts: Sequence[Text]) -> None:
    seen = {text.key for text in texts}
    for name, own in keys.items():
        for key in own:
            if not key or key.startswith("\0") or key == bundle.GRAPH or len(key.encode()) > sorted_table.MAX_KEY:
                raise ModelhubError(f"TensorFlow cannot store a tensor called {name[:200]!r}: the index keeps other things there")
            if key in seen:
                raise ModelhubError(f"TensorFlow cannot store two tensors called {key[:200]!r}")
            seen.add(key)


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


def _index(entries: Sequence[tuple[bytes, _Entry]], shards: int, *, ours: bool) -> Callable[[], bytes]:
    def data() -> bytes:
        header = number(1, shards) + message(3, number(1, _VERSION)) + (message(*bundle.OURS) if ours else b"")
        return sorted_table.build([(b"", header), *((key, entry.encoded()) for key, entry in entries)])

    return data
