"""Checkpoints, and the variables of SavedModels, as checkpoints of the second version: every variable under its own key, the
optimizer's state, strings and the graph of objects with them, so that TensorFlow restores the copy as it restores the original.
Reads no weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelhub import Conversion, Extent, File, Metadata, Table, Tensor

from modelhub_tensorflow import bundle, elements, reader, saved_model
from modelhub_tensorflow.bundle import Bundle
from modelhub_tensorflow.writer import NATIVE, Layout, Text


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """``sources[0]``, what is stored beside the model included."""
    source = sources[0]
    index = _index_of(source)
    if index is None:
        return _by_names(source)
    with File(index) as file:
        found = bundle.read(file)
    directory = os.path.dirname(index)
    graph = reader.graph_of(found, directory, source.files)
    _, names, _ = reader.names_of(found, graph)
    if not {*names.values()}.intersection(source.by_name):
        return _by_names(source)
    texts = tuple(_texts(found, directory, source.files))
    carried = {names[text.key] for text in texts}
    tensors = tuple(tensor for tensor in source.tensors if not _is_carried(tensor, carried))
    layout = Layout({name: key for key, name in names.items()}, graph, texts, found.ours)
    return replace(source, tensors=tensors, metadata=_metadata(source, layout))


def derive_from_first(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """A checkpoint of the first version: it has names alone, and is restored by them."""
    return replace(sources[0], metadata=_metadata(sources[0], Layout()))


def _by_names(source: Table) -> Table:
    """Constants of a graph, which stand in no index."""
    return replace(source, tensors=source.logical, metadata=_metadata(source, None))


def _index_of(source: Table) -> str | None:
    """The one index among the files; None for a SavedModel without variables, and for a merge of several checkpoints."""
    indexes = [file for file in source.files if file.endswith(bundle.INDEX)]
    inside = [file for file in indexes if file.endswith(os.sep + saved_model.INDEX)]
    found = inside or indexes
    return found[0] if len(found) == 1 else None


def _texts(found: Bundle, directory: str, files: Sequence[str]) -> list[Text]:
    """Tensors of strings that can be carried over byte by byte."""
    texts = []
    for key, entry in found.entries.items():
        path = os.path.join(directory, found.shard_name(entry.shard))
        plain = entry.number == elements.STRING and not entry.slices and not found.big_endian
        if plain and key != bundle.GRAPH and path in files:
            texts.append(Text(key, entry.shape.sides, Extent(path, entry.offset, entry.size), entry.crc))
    return texts


def _is_carried(tensor: Tensor, texts: set[str]) -> bool:
    return tensor.value is None and tensor.name in texts


def _metadata(source: Table, layout: Layout | None) -> Metadata:
    """What describes the source's own format stays with it."""
    native = {} if layout is None else {NATIVE: layout}
    return Metadata(values=source.metadata.values, stored=source.metadata.stored, native=native)


CONVERSIONS = tuple(
    Conversion(name=f"{source}-to-tensorflow", source=source, target="tensorflow", derive=how, keeps_names=True)
    for source, how in (("tensorflow", derive), ("savedmodel", derive), ("tensorflow-v1", derive_from_first))
)
