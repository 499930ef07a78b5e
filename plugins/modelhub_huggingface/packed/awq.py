"""AWQ, as AutoAWQ writes it for its "gemm" kernels: four bits, packed along the output, eight to a word in an order of their own.

``qweight`` (K, N / 8), ``qzeros`` (G, N / 8), ``scales`` (G, N); nibble i of a word holds column ``ORDER[i]`` of its eight.
(AutoAWQ ``modules/linear/gemm.py``, ``utils/packing_utils.py``.) `modelhub_huggingface.packed.awq_gemv` has the layouts for
vectors; "marlin" is told only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed import awq_gemv
from modelhub_huggingface.packed.numbers import affine, columns_of, float32_of, kept, stored
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_READ = ("gemm", "exllama", "")
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with a ``qweight``."""
    layout = str(source.settings.get("version") or "").lower()
    group = source.settings.get("group_size", source.settings.get("q_group_size"))
    for module in modules(source.tensors, "qweight"):
        if layout in awq_gemv.LAYOUTS:
            found = awq_gemv.module(source, module, layout, group)
            yield Kept(member(module, "qweight"), found) if isinstance(found, str) else found
            continue
        parts = tuple(member(module, part) for part in ("qweight", "qzeros", "scales"))
        words = ("I32", "U32")
        why = lack(source.tensors, dict(zip(parts, (words, words, FLOATS), strict=True)))
        if layout not in _READ:
            why = f"the layout {layout!r:.40} is not read; gemm, {', '.join(awq_gemv.LAYOUTS)} are"
        if not why:
            try:
                value = ops.dequant("awq", *(typed(source.tensors[part]) for part in parts))
            except ValueError as error:
                why = str(error)
            else:
                yield whole(member(module, "weight"), value, parts)
        if why:
            yield Kept(parts[0], why)


def _sizes(inputs: Sequence[_Spec]) -> tuple[int, int, int]:
    """(N, K, input columns of a group)."""
    shapes = [shape for _, shape in inputs]
    if len(shapes) != 3 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"AWQ takes three matrices, not {[list(shape) for shape in shapes]}")
    (inner, words), zeros, (groups, columns) = shapes
    if words * 8 != columns or zeros != (groups, words) or groups < 1 or inner % groups:
        raise ValueError(f"qweight {[inner, words]}, qzeros {list(zeros)} and scales {[groups, columns]} are no groups of 4 bits")
    return columns, inner, inner // groups


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    columns, inner, _ = _sizes(inputs)
    if inputs[2][0] not in FLOATS:
        raise ValueError(f"scales are {inputs[2][0]}")
    return inputs[2][0], (columns, inner)


def columns(words: Any, start: int, stop: int, order: Sequence[int] = ORDER) -> Any:
    """Columns ``start``..``stop`` of a packed input, as rows of ``uint8``; nibble i of a word holds column ``order[i]``."""
    import numpy as np

    first = start // 8
    part = np.ascontiguousarray(columns_of(words, first, -(-stop // 8)).T).view("<u4")
    shifts = np.array([4 * order.index(column) for column in range(8)], np.uint32)
    found = (part[:, None, :] >> shifts[:, None] & np.uint32(15)).astype(np.uint8)
    return found.reshape(-1, words.shape[0])[start - 8 * first : stop - 8 * first]


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    _, _, group = _sizes([(source.dtype, source.shape) for source in sources])
    weights, zeros = (columns(source, start, stop) for source in sources[:2])
    scales = float32_of(columns_of(sources[2], start, stop).T, sources[2].dtype)
    return stored(affine(weights, zeros.astype("f4"), scales, None, group), sources[2].dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    columns, inner, _ = _sizes(inputs)
    return kept(columns * inner // 2) + 16 * rows * inner


OPS = (Op(name="dequant.awq", rows=_rows, infer=_infer, memory=_memory), *awq_gemv.OPS)
SCHEME = Scheme(methods=("awq",), unpack=unpack, ops=OPS)
