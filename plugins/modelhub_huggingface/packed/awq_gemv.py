"""AWQ's layouts for kernels that multiply vectors, packed along the input: AutoAWQ's "gemv" and "gemv_fast", and llm-awq's own.

"gemv": ``qweight`` (N, K / 8), ``qzeros`` (N, W), ``scales`` (N, 8 W), the lowest bits first; the last groups are padding.
"gemv_fast": ``qweight`` I16 (N / 4, K), of which a row holds four rows of the matrix in an order of the kernel's; ``scales`` and
``qzeros`` (8 W, N) are floats, the second already the zero point times its scale, negative: llm-awq calls them ``scaled_zeros``.
(AutoAWQ ``modules/linear/gemv.py``, ``gemv_fast.py``; GPTQModel ``nn_modules/qlinear/gemv_fast_awq.py``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed.numbers import affine, columns_of, float32_of, stored, unpack_words
from modelhub_huggingface.packed.scheme import FLOATS, Stored, Whole, lack, member, typed, whole

LAYOUTS = {"gemv": "qzeros", "gemv_fast": "qzeros", "llm-awq": "scaled_zeros"}
"""``version`` -> what the zero points are called."""
SPAN = 64
"""Columns that "gemv_fast" packs together, of four rows each."""
_Spec = tuple[str, tuple[int, ...]]


def module(source: Stored, name: str, layout: str, group: object) -> Whole | str:
    """The whole of the module ``name``, packed as ``layout`` says, or why there is none."""
    parts = tuple(member(name, part) for part in ("qweight", LAYOUTS[layout], "scales"))
    fast = layout != "gemv"
    kinds = (("I16",), FLOATS, FLOATS) if fast else (("I32", "U32"), ("I32", "U32"), FLOATS)
    why = lack(source.tensors, dict(zip(parts, kinds, strict=True)))
    if why:
        return why
    inputs = [typed(source.tensors[part]) for part in parts]
    columns = inputs[0].shape[-1] * (1 if fast else 8) if inputs[0].shape else 0
    try:
        size = columns if group == -1 else group
        value = ops.dequant("awq_gemv_fast" if fast else "awq_gemv", *inputs, group=size)
    except ValueError as error:
        return str(error)
    return whole(member(name, "weight"), value, parts)


def _groups(columns: int, group: Any, room: int) -> int:
    """How many groups there are, of ``room`` places. ValueError where they do not fit."""
    count = columns // group if type(group) is int and 0 < group <= columns and columns % group == 0 else 0
    if not count or not count <= room < count + 64:
        raise ValueError(f"{columns} columns in groups of {group!r:.20} do not fit {room} places for them")
    return count


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    shapes = [shape for _, shape in inputs]
    if len(shapes) != 3 or any(len(shape) != 2 for shape in shapes) or inputs[2][0] not in FLOATS:
        raise ValueError(f"AWQ takes three matrices, not {[list(shape) for shape in shapes]}")
    (rows, words), zeros, (scale_rows, room) = shapes
    if scale_rows != rows or zeros != (rows, room // 8) or room % 8:
        raise ValueError(f"qweight {list(shapes[0])}, qzeros {list(zeros)} and scales {list(shapes[2])} do not fit each other")
    _groups(words * 8, args["group"], room)
    return inputs[2][0], (rows, words * 8)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    words, zeros, scales = (source.read(start, stop) for source in sources)
    columns, group = words.shape[1] * 8, args["group"]
    count = columns // group
    points = unpack_words(zeros, 4, count).astype(np.float32)
    real = float32_of(scales[:, :count], sources[2].dtype)
    return stored(affine(unpack_words(words, 4, columns), points, real, None, group), sources[2].dtype)


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    return [(start, stop)] * 3


# --- gemv_fast ----------------------------------------------------------------------------------------------------


def _fast_infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    shapes = [shape for _, shape in inputs]
    if len(shapes) != 3 or any(len(shape) != 2 for shape in shapes) or inputs[1][0] != inputs[2][0] or inputs[2][0] not in FLOATS:
        raise ValueError(f"AWQ takes three matrices, not {[list(shape) for shape in shapes]}")
    (blocks, columns), zeros, (room, rows) = shapes
    if rows != 4 * blocks or zeros != (room, rows) or columns % SPAN or not columns:
        raise ValueError(f"qweight {list(shapes[0])}, zeros {list(zeros)} and scales {list(shapes[2])} do not fit each other")
    _groups(columns, args["group"], room)
    return inputs[2][0], (rows, columns)


def _order() -> Any:
    """Where the 32 neighbours of a row stand: pairs are dealt to four bytes, and these to even and odd halves."""
    import numpy as np

    column = np.arange(32)
    return column % 8 // 2 * 8 + column % 2 * 4 + column // 8


def _fast_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    group = args["group"]
    words = sources[0].read(start // 4, -(-stop // 4)).view(np.uint16)
    columns = words.shape[1]
    count = columns // group
    # A word is four numbers that follow each other; a block is four rows of 64 columns.
    halves = (words[:, :, None] >> np.arange(0, 16, 4, dtype=np.uint16) & np.uint16(15)).astype(np.uint8)
    blocks = halves.reshape(len(words), -1, 4, SPAN // 32, 32)[..., _order()]
    numbers = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, columns)[start % 4 :][: stop - start]
    scales, zeros = (float32_of(columns_of(source, start, stop)[:count].T, source.dtype) for source in (sources[2], sources[1]))
    values = numbers.reshape(stop - start, count, group).astype(np.float32) * scales[:, :, None] + zeros[:, :, None]
    return stored(values.reshape(stop - start, columns), sources[2].dtype)


def _fast_needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    room = inputs[2][1][0]
    return [(start // 4, -(-stop // 4)), (0, room), (0, room)]


OPS = (
    Op(name="dequant.awq_gemv", rows=_rows, infer=_infer, needs=_needs),
    Op(name="dequant.awq_gemv_fast", rows=_fast_rows, infer=_fast_infer, needs=_fast_needs),
)
