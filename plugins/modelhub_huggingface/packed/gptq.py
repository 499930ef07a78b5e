"""GPTQ, as AutoGPTQ and GPTQModel write it: ``qweight``, ``qzeros``, ``scales``, ``g_idx``.

A matrix of (N, K) is stored as words of 32 bits, packed along K: ``qweight`` (K x bits / 32, N). ``scales`` (G, N) and ``qzeros``
(G, N x bits / 32) are one a group of input columns; ``g_idx`` (K) says each column's group (``desc_act``). The first layout
("gptq") stores zero points less one, the second ("gptq_v2") as they are. (AutoGPTQ ``nn_modules/qlinear/qlinear_cuda_old.py``,
GPTQModel ``utils/model.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed.numbers import affine, float32_of, groups_of, stored, unpack_words, whole_of
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

BITS = (2, 3, 4, 8)
_LAYOUTS = {"gptq": 1, "gptq_v2": 0, "": 1}
"""``checkpoint_format`` -> what is added to a stored zero point."""
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with a ``qweight``. Its bits follow from its shapes, so overrides of single modules need no look-up."""
    layout = source.settings.get("checkpoint_format") or ""
    for module in modules(source.tensors, "qweight"):
        name = member(module, "qweight")
        if layout not in _LAYOUTS:
            yield Kept(name, f"the layout {layout!r:.40} is not read; there are gptq and gptq_v2")
            continue
        names = {part: member(module, part) for part in ("qweight", "qzeros", "scales")}
        words = ("I32", "U32")
        why = lack(source.tensors, {names["qweight"]: words, names["qzeros"]: words, names["scales"]: FLOATS})
        if why:
            yield Kept(name, why)
            continue
        parts = list(names.values())
        index = member(module, "g_idx")
        if index in source.tensors and source.tensors[index].value is not None:
            parts.append(index)
        group = source.settings.get("group_size")
        counted, inner = source.tensors[names["scales"]].shape[0], source.tensors[names["qweight"]].shape[0] * 32
        bits = source.settings.get("bits")
        whole_groups = type(bits) is int and bits in BITS and (inner // bits) % max(1, counted) == 0
        if len(parts) == 3 and type(group) is int and group > 0 and not whole_groups:
            yield Kept(name, f"without g_idx, {counted} groups of {group} columns do not divide the matrix evenly")
            continue
        try:
            value = ops.dequant("gptq", *(typed(source.tensors[part]) for part in parts), zero=_LAYOUTS[layout])
        except ValueError as error:
            yield Kept(name, str(error))
            continue
        yield whole(member(module, "weight"), value, tuple(parts))


# --- the op -------------------------------------------------------------------------------------------------------


def sizes(inputs: Sequence[_Spec]) -> tuple[int, int, int, int]:
    """(N, K, bits, columns of a group), from the shapes alone. ValueError where they do not fit."""
    shapes = [shape for _, shape in inputs]
    if len(shapes) not in (3, 4) or any(len(shape) != 2 for shape in shapes[:3]):
        raise ValueError(f"GPTQ takes three matrices and g_idx, not {[list(shape) for shape in shapes]}")
    (words, columns), (groups, packed), (scale_groups, scale_columns) = shapes[:3]
    if columns < 1 or groups < 1 or (scale_groups, scale_columns) != (groups, columns):
        raise ValueError(f"scales {list(shapes[2])} do not fit qweight {list(shapes[0])} and qzeros {list(shapes[1])}")
    bits = next((bits for bits in BITS if -(-columns * bits // 32) == packed and words * 32 % bits == 0), 0)
    if not bits:
        raise ValueError(f"qzeros {list(shapes[1])} of {columns} columns are of no 2, 3, 4 or 8 bits")
    rows = words * 32 // bits
    if len(shapes) == 4 and shapes[3] != (rows,):
        raise ValueError(f"g_idx has the shape {list(shapes[3])}, {rows} were expected")
    if groups > rows:
        raise ValueError(f"{groups} groups of {rows} columns")
    return columns, rows, bits, -(-rows // groups)


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    columns, rows, _, _ = sizes(inputs)
    if args["zero"] not in (0, 1):
        raise ValueError(f"a stored zero point is one less or as it is, not {args['zero']!r}")
    if inputs[2][0] not in FLOATS:
        raise ValueError(f"scales are {inputs[2][0]}")
    return inputs[2][0], (columns, rows)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    _, inner, bits, group = sizes([(source.dtype, source.shape) for source in sources])
    numbers = unpack_words(whole_of(sources[0])[:, start:stop].T, bits, inner)
    first = start * bits // 32 * 32 // bits if bits != 3 else start // 32 * 32
    words = whole_of(sources[1])[:, first * bits // 32 : -(-stop * bits // 32)]
    zeros = unpack_words(words, bits, words.shape[1] * 32 // bits)[:, start - first : stop - first]
    zeros = (zeros.T + args["zero"]) & ((1 << bits) - 1)
    scales = float32_of(whole_of(sources[2])[:, start:stop].T, sources[2].dtype)
    groups = groups_of(sources[3], scales.shape[1], group) if len(sources) > 3 else None
    return stored(affine(numbers, zeros.astype("f4"), scales, groups, group), sources[2].dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    columns, inner, bits, _ = sizes(inputs)
    return columns * inner * bits // 8 + 12 * rows * inner


OPS = (Op(name="dequant.gptq", rows=_rows, infer=_infer, memory=_memory),)
SCHEME = Scheme(methods=("gptq",), unpack=unpack, ops=OPS)
