"""Marlin's layouts: 4 or 8 bits in tiles of 16 x 64, in the order in which its kernel's threads read them; dense, or 2:4 sparse.

Dense (AutoGPTQ): ``B`` (K / 16, N x bits / 2) words, ``s`` (G, N) scales, in an order of their own. 2:4 sparse: of each four
neighbours in a row two are kept, so that the words (K / 32, ...) hold half the columns; ``meta`` says which, two bits each, in
CUTLASS' order. compressed-tensors calls these ``weight_packed``, ``scale_packed``, ``meta``; others ``B_24``, ``s``, ``B_meta``.
Numbers are stored plus half their range; the whole is (N, K).
(AutoGPTQ ``nn_modules/qlinear/qlinear_marlin.py``; compressed-tensors ``sparse_quantized_compressors/marlin_24.py``,
``utils/permutations_24.py``, ``utils/semi_structured_conversions.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from modelhub import InvalidFile, Op, ops

from modelhub_huggingface.packed.numbers import affine, columns_of, float32_of, kept, stored, unpack_words, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

DENSE = ("B", "s")
SPARSE = (("weight_packed", "scale_packed", "meta"), ("B_24", "s", "B_meta"))
WORDS = ("I32", "U32")
WIDE = 64
"""Rows of the whole that are packed together."""
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with ``B``, or with ``B_24``."""
    for names in (DENSE, SPARSE[1]):
        for name in modules(source.tensors, names[0]):
            found = module(source, name, names)
            yield Kept(member(name, names[0]), found) if isinstance(found, str) else found


def module(source: Stored, name: str, names: tuple[str, ...]) -> Whole | str:
    """The whole of the module ``name``, whose parts are called ``names``, or why there is none."""
    parts = tuple(member(name, part) for part in names)
    kinds = (WORDS, FLOATS, ("I16", "U16"))
    why = lack(source.tensors, dict(zip(parts, kinds, strict=False)))
    if why:
        return why
    try:
        value = ops.dequant("marlin_24" if len(parts) == 3 else "marlin", *(typed(source.tensors[part]) for part in parts))
    except ValueError as error:
        return str(error)
    others = [other for other in (member(name, "workspace"),) if other in source.tensors]
    return whole(member(name, "weight"), value, (*parts, *others))


def _sizes(inputs: Sequence[_Spec]) -> tuple[int, int, int, int]:
    """(N, columns that are stored, bits, groups). ValueError where the shapes are of no such layout."""
    shapes = [shape for _, shape in inputs]
    if len(shapes) not in (2, 3) or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"Marlin takes matrices, not {[list(shape) for shape in shapes][:4]}")
    (tiles, words), (groups, rows) = shapes[:2]
    bits = words * 2 // rows if rows else 0
    if bits not in (4, 8) or words * 2 != rows * bits or rows % WIDE or not tiles or not groups:
        raise ValueError(f"words {list(shapes[0])} and scales {list(shapes[1])} are not of Marlin's layout")
    columns = tiles * 16
    if len(shapes) == 3 and (shapes[2] != (tiles, 2 * rows) or columns % 16):
        raise ValueError(f"meta {list(shapes[2])} does not fit words {list(shapes[0])}")
    if columns * (len(shapes) - 1) % groups:
        raise ValueError(f"{columns * (len(shapes) - 1)} columns are no {groups} groups")
    return rows, columns, bits, groups


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    rows, columns, _, _ = _sizes(inputs)
    if inputs[0][0] not in WORDS or inputs[1][0] not in FLOATS:
        raise ValueError(f"Marlin takes words and floats, not {[kind for kind, _ in inputs]}")
    return inputs[1][0], (rows, columns * (len(inputs) - 1))


@cache
def _order(sparse: bool, bits: int) -> Any:
    """Where the 1,024 numbers of four tiles come from: of 32 threads, eight numbers in each of four steps."""
    import numpy as np

    thread = np.arange(32)[:, None, None, None]
    step = np.arange(4)[None, :, None, None]
    block = np.arange(2)[None, None, :, None]
    row = 2 * (thread % 4) + np.array([0, 1, 8, 9])[None, None, None, :]
    column = thread // 4
    if sparse:
        place = 16 * row + column // 2 * 256 + 8 * (column % 2) + 4 * block + step
    else:
        place = 16 * row + column + 8 * block + 256 * step
    halves = (0, 2, 4, 6, 1, 3, 5, 7) if bits == 4 else (0, 2, 1, 3)
    return place.reshape(-1, len(halves))[:, halves].reshape(-1)


def _scale_order(sparse: bool, groups: int, columns: int) -> Any:
    """Where the scales of 64 rows come from."""
    import numpy as np

    place = np.arange(WIDE)
    if sparse:
        grouped = groups > 1 and 2 * columns // groups < columns
        return place // 8 * 8 + np.array([0, 4, 1, 5, 2, 6, 3, 7])[place % 8] if grouped else place
    if groups > 1:
        return place % 8 * 8 + place // 8
    return place // 32 * 32 + place % 32 // 8 * 2 + np.array([0, 1, 8, 9, 16, 17, 24, 25])[place % 8]


def _numbers(words: Any, bits: int, sparse: bool, start: int, stop: int) -> Any:
    """Rows ``start``..``stop`` (multiples of 64) of what is stored in the input ``words``."""
    import numpy as np

    count = stop - start
    packed = unpack_words(columns_of(words, start * bits // 2, stop * bits // 2), bits, count * 16).reshape(-1, 1024)
    tiles = np.empty_like(packed)
    tiles[:, _order(sparse, bits)] = packed
    return tiles.reshape(words.shape[0], count // 16, 16, 16).transpose(1, 3, 0, 2).reshape(count, -1)


def _spread(numbers: Any, meta: Any, rows: int, start: int, stop: int, rest: int) -> Any:
    """Rows of twice as many columns: the numbers where ``meta`` puts them, ``rest`` elsewhere."""
    import numpy as np

    columns = numbers.shape[1] // 8  # of units of meta
    row, column = np.arange(start, stop)[:, None], np.arange(columns)[None, :]
    # CUTLASS: rows are dealt out in 64, then blocks of two by two are turned, and columns go in pairs.
    place = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
    turned = ((place % 2 == 0) & (column % 2 == 1)).astype(np.int64) - ((place % 2 == 1) & (column % 2 == 0))
    place, column = place + turned, column - turned
    units = meta.reshape(-1).view(np.uint16)[column // 2 * rows * 2 + place * 2 + column % 2]
    which = (units[:, :, None] >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)).reshape(len(numbers), -1, 2)
    if (which[:, :, 0] == which[:, :, 1]).any():
        raise InvalidFile("meta of 2:4 sparse weights keeps the same one of four neighbours twice")
    found = np.full((len(numbers), which.shape[1], 4), rest, numbers.dtype)
    np.put_along_axis(found, which.astype(np.int64), numbers.reshape(len(numbers), -1, 2), 2)
    return found.reshape(len(numbers), -1)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    rows, columns, bits, groups = _sizes([(source.dtype, source.shape) for source in sources])
    sparse = len(sources) == 3
    low, high = start // WIDE * WIDE, -(-stop // WIDE) * WIDE
    numbers = _numbers(sources[0], bits, sparse, low, high)
    if sparse:
        numbers = _spread(numbers, whole_of(sources[2]), rows, low, high, 1 << (bits - 1))
    packed = float32_of(columns_of(sources[1], low, high), sources[1].dtype).reshape(-1, WIDE)
    scales = np.empty_like(packed)
    scales[:, _scale_order(sparse, groups, columns)] = packed
    scales = scales.reshape(groups, high - low).T[start - low : stop - low]
    values = numbers[start - low : stop - low].astype(np.float32) - np.float32(1 << (bits - 1))
    return stored(affine(values, None, scales, None, values.shape[1] // groups), sources[1].dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    count, columns, bits, _ = _sizes(inputs)
    return kept(count * columns * bits // 8) + count * columns // 4 + 24 * (rows + 2 * WIDE) * columns * (len(inputs) - 1)


OPS = (
    Op(name="dequant.marlin", rows=_rows, infer=_infer, memory=_memory),
    Op(name="dequant.marlin_24", rows=_rows, infer=_infer, memory=_memory),
)
SCHEME = Scheme(methods=("marlin", "gptq_marlin_24"), unpack=unpack, ops=OPS)
