"""GPTQ, as AutoGPTQ and GPTQModel write it: ``qweight``, ``qzeros``, ``scales``, ``g_idx``.

A matrix of (N, K) is stored as words of 32 bits, packed along K: ``qweight`` (K x bits / 32, N). ``scales`` (G, N) and ``qzeros``
(G, N x bits / 32) are one a group of input columns; ``g_idx`` (K) says each column's group (``desc_act``). The first layout
("gptq") stores zero points less one, the second ("gptq_v2") as they are. The third ("gptq_p") does so too, and splits numbers
that do not divide a word into planes of bits that do. (AutoGPTQ ``nn_modules/qlinear/qlinear_cuda_old.py``, GPTQModel
``utils/model.py``, ``utils/planar_packing.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed import marlin
from modelhub_huggingface.packed.numbers import (
    PLANES,
    affine,
    columns_of,
    float32_of,
    groups_of,
    kept,
    stored,
    unpack_planes,
    unpack_words,
)
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

BITS = (2, 3, 4, 8)
PLANAR, RUNS, RUNS_V1 = "gptq_p", "runs", "runs_v1"
_LAYOUTS = {"gptq": 1, "gptq_v2": 0, PLANAR: 0, "": 1, RUNS: 0, RUNS_V1: 1}
"""``checkpoint_format`` -> what is added to a stored zero point. The last two are AutoRound's, of any number of bits."""
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with a ``qweight``, or in Marlin's layout. Where the settings do not fit its shapes, it has settings of its
    own (GPTQModel's ``dynamic``), which its shapes must then leave no doubt of."""
    layout = source.settings.get("checkpoint_format") or ""
    yield from marlin.unpack(source)
    for module in modules(source.tensors, "qweight"):
        name = member(module, "qweight")
        if not isinstance(layout, str) or layout not in _LAYOUTS:
            yield Kept(name, f"the layout {layout!r:.40} is not read; there are gptq, gptq_v2 and gptq_p")
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
        shapes = [source.tensors[part].shape for part in parts]
        try:
            bits = bits_of(shapes, source.settings.get("bits"), among=_bits(layout))
            group = group_of(shapes, bits, source.settings.get("group_size"))
            stored_parts = [typed(source.tensors[part]) for part in parts]
            planar = layout == PLANAR and bits in PLANES
            value = ops.dequant("gptq", *stored_parts, zero=_LAYOUTS[layout], bits=bits, group=group, planar=planar)
        except ValueError as error:
            yield Kept(name, str(error))
            continue
        yield whole(member(module, "weight"), value, tuple(parts))


def _bits(layout: str) -> Sequence[int]:
    return range(2, 9) if layout in (PLANAR, RUNS, RUNS_V1) else BITS


def bits_of(shapes: Sequence[tuple[int, ...]], said: object, among: Sequence[int] = BITS) -> int:
    """Bits of a number: what the settings say where it fits the shapes, else the only one that does. ``among``:
    those that the layout has. ValueError where none or several do."""
    if any(len(shape) != 2 for shape in shapes[:3]):
        raise ValueError(f"GPTQ takes three matrices, not {[list(shape) for shape in shapes[:3]]}")
    (words, columns), (_, packed), _ = shapes[:3]
    rows = shapes[3][0] if len(shapes) == 4 and len(shapes[3]) == 1 else 0
    fitting = [
        bits
        for bits in among
        if -(-columns * bits // 32) == packed and words * 32 % bits == 0 and rows in (0, words * 32 // bits)
    ]
    if said not in fitting and len(fitting) != 1:
        raise ValueError(
            f"qweight {list(shapes[0])} and qzeros {list(shapes[1])} are of no one number of bits (said: {said!r:.20})"
        )
    return next((bits for bits in fitting if bits == said), fitting[0])


def group_of(shapes: Sequence[tuple[int, ...]], bits: int, said: object) -> int:
    """Columns of a group: what the settings say where it fits the shapes, else what divides them evenly. With a group for each
    column in ``g_idx`` it is not needed."""
    rows, groups = shapes[0][0] * 32 // bits, shapes[2][0]
    if type(said) is int and said > 0 and -(-rows // said) == groups:
        return said
    if groups and rows % groups == 0:
        return rows // groups
    if len(shapes) == 4:
        return -(-rows // max(1, groups))
    raise ValueError(f"{groups} groups of {rows} columns do not fit a group size of {said!r:.20}, and there is no g_idx")


# --- the op -------------------------------------------------------------------------------------------------------


def _sizes(inputs: Sequence[_Spec], bits: Any, group: Any, planar: bool) -> tuple[int, int]:
    """(N, K). ValueError where shapes, bits and groups do not fit each other."""
    shapes = [shape for _, shape in inputs]
    if len(shapes) not in (3, 4) or any(len(shape) != 2 for shape in shapes[:3]):
        raise ValueError(f"GPTQ takes three matrices and g_idx, not {[list(shape) for shape in shapes]}")
    (words, columns), (groups, packed), (scale_groups, scale_columns) = shapes[:3]
    if columns < 1 or groups < 1 or (scale_groups, scale_columns) != (groups, columns):
        raise ValueError(f"scales {list(shapes[2])} do not fit qweight {list(shapes[0])} and qzeros {list(shapes[1])}")
    known = bits in PLANES and columns % 32 == 0 and words % bits == 0 if planar else bits in range(2, 9)
    if not known or words * 32 % bits or -(-columns * bits // 32) != packed:
        raise ValueError(f"qweight {list(shapes[0])} and qzeros {list(shapes[1])} are not of {bits!r} bits")
    rows = words * 32 // bits
    if len(shapes) == 4 and shapes[3] != (rows,):
        raise ValueError(f"g_idx has the shape {list(shapes[3])}, {rows} were expected")
    if type(group) is not int or group < 1 or groups > rows or (len(shapes) == 3 and -(-rows // group) != groups):
        raise ValueError(f"{groups} groups of {rows} columns do not fit a group size of {group!r:.20}")
    return columns, rows


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    columns, rows = _sizes(inputs, args["bits"], args["group"], args["planar"])
    if args["zero"] not in (0, 1):
        raise ValueError(f"a stored zero point is one less or as it is, not {args['zero']!r}")
    if inputs[2][0] not in FLOATS:
        raise ValueError(f"scales are {inputs[2][0]}")
    return inputs[2][0], (columns, rows)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    bits, group = args["bits"], args["group"]
    unpacked = unpack_planes if args["planar"] else unpack_words
    inner = sources[0].shape[0] * 32 // bits
    numbers = unpacked(columns_of(sources[0], start, stop).T, bits, inner)
    first = start // 32 * 32
    words = columns_of(sources[1], first * bits // 32, min(sources[1].shape[1], -(-stop // 32) * bits))
    zeros = unpacked(words, bits, words.shape[1] * 32 // bits)[:, start - first : stop - first]
    zeros = (zeros.T + args["zero"]) & ((1 << bits) - 1)
    scales = float32_of(columns_of(sources[2], start, stop).T, sources[2].dtype)
    groups = groups_of(sources[3], scales.shape[1], group) if len(sources) > 3 else None
    return stored(affine(numbers, zeros.astype("f4"), scales, groups, group), sources[2].dtype)


def _memory(inputs: Sequence[_Spec], args: Mapping[str, Any], rows: int) -> int:
    words, columns = inputs[0][1]
    return kept(4 * words * columns) + 12 * rows * words * 32 // int(args["bits"])


OPS = (Op(name="dequant.gptq", rows=_rows, infer=_infer, memory=_memory),)
SCHEME = Scheme(methods=("gptq",), unpack=unpack, ops=OPS)
