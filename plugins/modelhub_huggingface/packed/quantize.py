"""Weights packed by rounding to nearest: ops from a plain matrix to the words and scales that loaders expect.

Nothing is calibrated: each group's scale is its largest magnitude over half the range, as the libraries' own round-to-nearest
takes it (AutoGPTQ ``quantization/quantizer.py``, symmetric; compressed-tensors ``quantization/utils/helpers.py``:
``calculate_qparams``). Scales are rounded to the dtype that they are stored in before anything is divided by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import Op

from modelhub_huggingface.packed.numbers import float32_of, stored
from modelhub_huggingface.packed.scheme import FLOATS

E4M3_MAX = 448.0
STEP = 4 << 20
"""Elements of a matrix that are quantized at a time where all of it has to go by."""
_Spec = tuple[str, tuple[int, ...]]


def _matrix(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> tuple[int, int, int]:
    """(N, K, columns of a group)."""
    if len(inputs) != 1 or len(inputs[0][1]) != 2 or inputs[0][0] not in (*FLOATS, "F64"):
        raise ValueError(f"quantize takes one matrix of floats, not {list(inputs)}")
    rows, columns = inputs[0][1]
    group = args["group"] or columns
    if rows < 1 or columns < 1 or group < 1 or columns % group:
        raise ValueError(f"{columns} columns are no groups of {group}")
    return rows, columns, group


def _values(source: Any, start: int, stop: int) -> Any:
    import numpy as np

    rows = source.read(start, stop)
    return rows.astype(np.float32) if source.dtype == "F64" else float32_of(rows, source.dtype)


def scales_of(values: Any, group: int, steps: float, dtype: str) -> tuple[Any, Any]:
    """(scales as stored, as float32) of rows: (rows, groups). A group of zeros has the scale 1. `ValueError`
    for what is not finite."""
    import numpy as np

    parts = values.reshape(len(values), -1, group)
    top = np.abs(parts).max(2)
    if not np.isfinite(top).all():
        row, place = np.argwhere(~np.isfinite(top))[0]
        raise ValueError(f"NaN or infinity in row {row}, columns {place * group} to {(place + 1) * group}")
    kept = stored(np.where(top > 0, top / np.float32(steps), 1), dtype)
    real = float32_of(kept, dtype)
    if not (real > 0).all() or not np.isfinite(real).all():
        raise ValueError(f"a scale of a group does not fit {dtype}")
    return kept, real


def _integers(values: Any, group: int, bits: int, dtype: str) -> tuple[Any, Any]:
    """(numbers from -half to half - 1 as int8-sized integers, stored scales)."""
    import numpy as np

    half = 1 << (bits - 1)
    kept, real = scales_of(values, group, half - 0.5, dtype)
    parts = values.reshape(len(values), -1, group) / real[:, :, None]
    return np.clip(np.rint(parts), -half, half - 1).astype(np.int16).reshape(values.shape), kept


def pack_words(numbers: Any, bits: int) -> Any:
    """Rows of numbers below 2^bits as rows of 32-bit words, lowest bits first."""
    import numpy as np

    if bits == 8:
        return np.ascontiguousarray(numbers.astype(np.uint8)).view("<u4")
    pairs = numbers.astype(np.uint8).reshape(len(numbers), -1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.ascontiguousarray(np.bitwise_or.reduce(pairs << shifts, axis=2)).view("<u4")


# --- row by row: compressed-tensors ---------------------------------------------------------------------------------


def _rows_infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    rows, columns, group = _matrix(inputs, args)
    part, bits = args["part"], args["bits"]
    if bits not in (4, 8, "e4m3") or args["scales"] not in FLOATS:
        raise ValueError(f"quantize.rows takes 4 or 8 bits or e4m3, not {bits!r}, and scales of floats, not {args['scales']!r}")
    if part == "scales":
        return args["scales"], (rows, columns // group)
    if part == "numbers" and bits == "e4m3":
        return "F8_E4M3", (rows, columns)
    if part == "words" and bits != "e4m3" and columns * bits % 32 == 0:
        return "I32", (rows, columns * bits // 32)
    raise ValueError(f"there is no part {part!r} of {bits!r} bits in {columns} columns")


def _rows_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    values = _values(sources[0], start, stop)
    group, bits, dtype = args["group"] or values.shape[1], args["bits"], args["scales"]
    if bits == "e4m3":
        kept, real = scales_of(values, group, E4M3_MAX, dtype)
        if args["part"] == "scales":
            return kept
        return to_e4m3((values.reshape(len(values), -1, group) / real[:, :, None]).reshape(values.shape))
    numbers, kept = _integers(values, group, bits, dtype)
    if args["part"] == "scales":
        return kept
    return pack_words(numbers + (1 << (bits - 1)), bits).view(np.int32)


def to_e4m3(values: Any) -> Any:
    """float32 as F8_E4M3 bytes, rounded to nearest, ties to even, the largest magnitude 448."""
    import numpy as np

    size = np.minimum(np.abs(values), np.float32(E4M3_MAX)).astype(np.float32)
    small = np.rint(size * np.float32(512)).astype(np.uint32)  # steps of 2^-9 below 2^-6
    word = size.view(np.uint32)
    rounded = word + (0x7FFFF + (word >> 20 & 1))  # 23 bits of mantissa to 3
    large = (rounded >> 20) - (120 << 3)
    code = np.where(size < np.float32(2.0**-6), small, np.minimum(large, 0x7E))
    return (code | (np.signbit(values).astype(np.uint32) << 7)).astype(np.uint8)


# --- down the columns: GPTQ ----------------------------------------------------------------------------------------


def _gptq_infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    rows, columns, group = _matrix(inputs, args)
    bits = args["bits"]
    if bits not in (4, 8) or columns * bits % 32 or args["scales"] not in FLOATS:
        raise ValueError(f"{columns} columns of {bits!r} bits do not fill words")
    if args["part"] == "words":
        return "I32", (columns * bits // 32, rows)
    if args["part"] == "scales":
        return args["scales"], (columns // group, rows)
    raise ValueError(f"GPTQ has no part {args['part']!r} to compute")


def _gptq_rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    """The whole part is made when its first rows are asked for: every row of it takes a piece of each row of the matrix."""
    import numpy as np

    source, bits = sources[0], args["bits"]
    made = source.state.get("made")
    if made is None:
        rows, columns = source.shape
        pieces = []
        for at in range(0, rows, max(1, STEP // columns)):
            values = _values(source, at, min(rows, at + max(1, STEP // columns)))
            numbers, kept = _integers(values, args["group"] or columns, bits, args["scales"])
            words = args["part"] == "words"
            pieces.append(pack_words(numbers + (1 << (bits - 1)), bits).view(np.int32).T if words else kept.T)
        made = source.state["made"] = np.ascontiguousarray(np.concatenate(pieces, axis=1))
    return made[start:stop]


def _gptq_memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    count, columns = inputs[0][1]
    return int(count * columns * args["bits"] // 4 + 20 * STEP)


OPS = (
    Op(name="quantize.rows", rows=_rows_rows, infer=_rows_infer, needs=lambda inputs, args, start, stop: [(start, stop)]),
    Op(name="quantize.gptq", rows=_gptq_rows, infer=_gptq_infer, memory=_gptq_memory),
)
