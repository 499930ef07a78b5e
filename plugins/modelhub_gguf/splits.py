"""A GGUF in several files: which belong together, and whether they are one model.

llama.cpp's ``llama-gguf-split`` (``tools/gguf-split``, ``src/llama-model-loader.cpp``): parts are called
``NAME-00001-of-0000N.gguf``; each says ``split.no`` (from 0), ``split.count`` and ``split.tensors.count`` (over all parts); the
first has all other keys, and the tensors of each part are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelhub import File, IncompleteFile, InvalidFile, ShardGroup, shard_group

from modelhub_gguf.fields import ARRAY, F32, F64, STRING, Field
from modelhub_gguf.header import Header, parse

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS)


def part_name(stem: str, number: int, count: int) -> str:
    """The name of part ``number`` (from 1) of ``count``, as llama.cpp looks for it (``llama_split_path``)."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def group_of_parts(file: File) -> ShardGroup | None:
    """The parts that belong with ``file``, told by their names; None where it stands alone."""
    return shard_group(file.name, file.siblings)


def count_of(fields: Mapping[str, Field], key: str) -> int | None:
    """A whole number under ``key``; None where there is none."""
    field = fields.get(key)
    if field is None or field.type in (STRING, ARRAY, F32, F64):
        return None
    return int(field.value)


def check_alone(header: Header, name: str) -> None:
    """`IncompleteFile` where a file that stands alone says that it is a part of something."""
    count = count_of(header.fields, COUNT) or 0
    if count > 1:
        number = count_of(header.fields, NUMBER)
        part = f"part {number + 1}" if number is not None else "a part"
        example = part_name("NAME", (number or 0) + 1, count)
        raise IncompleteFile(
            f"{name} is {part} of a model of {count}, and its name does not say where the others are", f"call it {example}"
        )


def read_parts(files: Sequence[File], missing: Sequence[str]) -> list[Header]:
    """The headers of the parts, in their order, held against each other. `InvalidFile` where they are not one model's."""
    total = len(files) + len(missing)
    headers: list[Header] = []
    owners: dict[str, str] = {}
    promised: tuple[int, str] | None = None
    for file in files:
        header = parse(file)
        headers.append(header)
        position = _position(file)
        count, number = count_of(header.fields, COUNT), count_of(header.fields, NUMBER)
        if count is not None and count != total:
            raise InvalidFile(f"{file.name} says that it is one of {count} parts (split.count), its name one of {total}")
        if number is not None and number != position:
            raise InvalidFile(f"{file.name} says that it is part {number + 1} (split.no), its name part {position + 1}")
        tensors = count_of(header.fields, TENSORS)
        if tensors is not None:
            promised = promised or (tensors, file.name)
            if promised[0] != tensors:
                raise InvalidFile(f"{file.name} is part of a model of {tensors} tensors, {promised[1]} of one of {promised[0]}")
        for name in header.columns.names:
            if name in owners:
                raise InvalidFile(f"tensor {name[:200]!r} stands in {owners[name]} and in {file.name}")
            owners[name] = file.name
    if promised and not missing and len(owners) != promised[0]:
        raise InvalidFile(f"the {total} parts hold {len(owners)} tensors; {promised[1]} says {promised[0]}")
    return headers


def _position(file: File) -> int:
    """Which part a name says that it is, from 0."""
    group = shard_group(file.name, file.siblings or {file.name: file.size})
    first = next(iter(sorted((*group.present, *group.missing))), file.name) if group else file.name
    start = int(first.rpartition("-of-")[0].rpartition("-")[2])
    return int(file.name.rpartition("-of-")[0].rpartition("-")[2]) - start


def merged(headers: Sequence[Header]) -> tuple[dict[str, Field], dict[str, int]]:
    """The keys of a split model, without those about the splitting; the first part's count."""
    fields: dict[str, Field] = {}
    lengths: dict[str, int] = {}
    for header in headers:
        for key, field in header.fields.items():
            if key not in KEYS and key not in fields:
                fields[key] = field
                if key in header.lengths:
                    lengths[key] = header.lengths[key]
    return fields, lengths
