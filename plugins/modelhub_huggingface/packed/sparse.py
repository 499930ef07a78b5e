"""compressed-tensors' sparse matrices: what is not zero, and a bit for each place.

``compressed`` holds the values, row by row; ``bitmask`` U8 (N, K / 8) has the lowest bit first; ``shape`` says (N, K). Of "2:4"
there are as many in each row (``compressed`` (N, K / 2)), else ``row_offsets`` (N) says where each row's begin. The values may be
FP8 or INT8 and have scales beside them. (compressed-tensors before 0.13, ``compressors/sparse_compressors/``.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, Op, Tensor, ops

from modelhub_huggingface.packed.numbers import whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Stored, lack, member, modules, typed

VALUES = (*FLOATS, "F8_E4M3", "I8")
_Spec = tuple[str, tuple[int, ...]]


def expanded(source: Stored) -> dict[str, tuple[Tensor | str, tuple[str, ...]]]:
    """By the names of their modules: each sparse weight as the dense one that it stands for (or why it stands for none), and its
    parts. These are members of the module (2:4), or of its weight."""
    found: dict[str, tuple[Tensor | str, tuple[str, ...]]] = {}
    for owner in modules(source.tensors, "bitmask"):
        module = owner.removesuffix(".weight")
        names = tuple(member(owner, part) for part in ("compressed", "bitmask", "row_offsets", "shape"))
        parts = tuple(name for name in names if name in source.tensors)
        found[module] = _dense(source, module, *names), parts
    return found


def _dense(source: Stored, module: str, values: str, mask: str, offsets: str, shape: str) -> Tensor | str:
    apart = offsets in source.tensors
    kinds = {values: VALUES, mask: ("U8",), **({offsets: ("I64",)} if apart else {})}
    why = lack(source.tensors, kinds)
    if why:
        return why
    said = source.read(source.tensors[shape], 16) if shape in source.tensors else b""
    if len(said) != 16:
        return f"{shape} does not say rows and columns"
    try:
        inputs = [typed(source.tensors[name]) for name in kinds]
        value = ops.node("expand.bitmask", *inputs, columns=struct.unpack("<2q", said)[1])
    except ValueError as error:
        return str(error)
    return Tensor(member(module, "weight"), value.dtype, value.shape, value)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    columns = args["columns"]
    if len(inputs) not in (2, 3) or inputs[0][0] not in VALUES or inputs[1][0] != "U8" or len(inputs[1][1]) != 2:
        raise ValueError(f"expand.bitmask takes values and bits, not {list(inputs)[:4]}")
    (kind, values), (_, (rows, packed)) = inputs[:2]
    if type(columns) is not int or columns < 1 or -(-columns // 8) != packed:
        raise ValueError(f"{packed} bytes a row are no mask of {columns!r:.20} columns")
    if len(inputs) == 2 and (columns % 2 or values != (rows, columns // 2)):
        raise ValueError(f"values {list(values)} are not half of {[rows, columns]}")
    if len(inputs) == 3 and (len(values) != 1 or inputs[2][0] != "I64" or inputs[2][1] not in ((rows,), (rows, 1))):
        raise ValueError(f"values {list(values)} and offsets {list(inputs[2][1])} do not fit {rows} rows")
    return kind, (rows, columns)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    mask = np.unpackbits(sources[1].read(start, stop), axis=1, count=args["columns"], bitorder="little").astype(bool)
    counts = mask.sum(axis=1)
    if len(sources) == 2:
        values = sources[0].read(start, stop)
        wanted = np.full(len(mask), values.shape[1])
    else:
        offsets = np.append(whole_of(sources[2]).reshape(-1), sources[0].shape[0])[start : stop + 1]
        wanted = np.diff(offsets)
        if offsets[0] < 0 or offsets[-1] > sources[0].shape[0] or (wanted < 0).any():
            raise InvalidFile(f"row_offsets lead out of {sources[0].shape[0]} values")
        values = sources[0].read(int(offsets[0]), int(offsets[-1]))
    if (counts != wanted).any():
        row = int(np.argmax(counts != wanted))
        raise InvalidFile(f"bitmask keeps {counts[row]} values in row {start + row}, there are {wanted[row]}")
    found = np.zeros(mask.shape, values.dtype)
    found[mask] = values.reshape(-1)
    return found


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    if len(inputs) == 2:
        return [(start, stop)] * 2
    return [(0, inputs[0][1][0]), (start, stop), (0, inputs[2][1][0])]


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    return int(12 * rows * args["columns"] + 16 * inputs[1][1][0])


OPS = (Op(name="expand.bitmask", rows=_rows, infer=_infer, needs=_needs, memory=_memory),)
