"""GGUF to GGUF: the same tensors and all keys, vocabularies not parsed but copied. Recipes change the dtypes; splits are joined
or made on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelhub import Conversion, ModelhubError, Table

from modelhub_gguf.reader import read_headers


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """``sources[0]`` with the keys of its files, in their order. `ModelhubError` where there are more sources, or other files."""
    if len(sources) != 1:
        raise ModelhubError(f"one GGUF is copied at a time, {len(sources)} were given")
    source = sources[0]
    fields, _, _ = read_headers(source.files)
    return replace(source, tensors=source.logical, metadata=replace(source.metadata, native=fields))


CONVERSION = Conversion(name="gguf-to-gguf", source="gguf", target="gguf", derive=derive)
