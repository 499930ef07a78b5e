"""MLX's quantization: each row in groups, ``weight = scale x number + bias``, or small floats with a scale.

``weight`` U32 (N, K x bits / 32), lowest bits first, one run of bits a row; ``scales`` and ``biases`` (N, K / group). Embeddings
are packed as well. Of the modes ``mxfp4``, ``nvfp4`` and ``mxfp8`` the words hold E2M1 or E4M3 numbers, and ``scales`` are bytes:
powers of two, or E4M3 (nvfp4). (mlx ``nn/layers/quantized.py``, ``mx.quantize``.) Modules may have settings of their own in
``config.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Op, ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.numbers import affine, float32_of, stored, unpack_words
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, member, modules, typed, whole

BITS = (1, 2, 3, 4, 5, 6, 8)
FLOATING = {"mxfp4": ("U8", 2, "U8", 32), "nvfp4": ("U8", 2, "F8_E4M3", 16), "mxfp8": ("F8_E4M3", 1, "U8", 32)}
"""Mode -> what the words hold, how many numbers a byte, what the scales are, columns of a group."""
_Spec = tuple[str, tuple[int, ...]]


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every module with ``scales``. Only the size of a group is taken from the settings: the bits follow from the shapes."""
    for module in modules(source.tensors, "scales"):
        own = source.settings.get(module)
        used = {**source.settings, **own} if isinstance(own, Mapping) else source.settings
        parts = tuple(member(module, part) for part in ("weight", "scales", "biases"))
        mode, group = used.get("mode") or "affine", used.get("group_size")
        why = lack(source.tensors, {parts[0]: ("U32",)})
        if not why and mode in FLOATING:
            found = _floating(source, module, parts[0], parts[1], FLOATING[mode])
            yield Kept(parts[0], found) if isinstance(found, str) else found
            continue
        if not why and mode != "affine":
            why = f"the mode {mode!r:.40} is not read; affine and {', '.join(FLOATING)} are"
        why = why or lack(source.tensors, {parts[1]: FLOATS, parts[2]: FLOATS})
        if not why:
            try:
                value = ops.dequant("mlx", *(typed(source.tensors[part]) for part in parts), group=group)
            except ValueError as error:
                why = str(error)
            else:
                yield whole(parts[0], value, parts)
        if why:
            yield Kept(parts[0], why)


def _floating(source: Stored, module: str, weight: str, scale: str, mode: tuple[str, int, str, int]) -> Whole | str:
    """A weight of small floats, or why there is none. Its leading sides (experts) are rows too."""
    kind, per_byte, scale_kind, group = mode
    why = lack(source.tensors, {scale: ("U8",)})
    if why:
        return why
    if member(module, "global_scale") in source.tensors:
        return f"{member(module, 'global_scale')} is not understood"
    numbers, scales = source.tensors[weight], source.tensors[scale]
    columns = (numbers.shape[-1] if numbers.shape else 0) * 4 * per_byte
    count = prod(numbers.shape[:-1])
    if len(numbers.shape) < 2 or scales.shape != (*numbers.shape[:-1], columns // group) or columns % group:
        return f"{list(numbers.shape)} words and scales {list(scales.shape)} are no groups of {group}"
    assert numbers.value is not None
    assert scales.value is not None
    dtype = source.dtype if source.dtype in FLOATS else "BF16"
    try:
        value = ops.dequant(
            "rows",
            ops.typed(numbers.value, kind, (count, columns // per_byte)),
            ops.typed(scales.value, scale_kind, (count, columns // group)),
            **rows.layout(columns, dtype, group=group),
        )
        return whole(weight, ops.typed(value, dtype, (*numbers.shape[:-1], columns)), (weight, scale))
    except ValueError as error:
        return str(error)


def _sizes(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> tuple[int, int, int]:
    """(rows, columns, bits); leading sides (experts) are rows too."""
    shapes = [shape for _, shape in inputs]
    group = args["group"]
    if type(group) is not int or not 0 < group <= 1 << 20 or len(shapes) != 3 or any(len(shape) < 2 for shape in shapes):
        raise ValueError(f"MLX takes three matrices in groups, not {[list(shape) for shape in shapes]} by {group!r}")
    if shapes[1] != shapes[2] or shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(f"weight {list(shapes[0])}, scales {list(shapes[1])} and biases {list(shapes[2])} do not fit each other")
    columns = shapes[1][-1] * group
    bits = shapes[0][-1] * 32 // columns if columns else 0
    if bits not in BITS or shapes[0][-1] * 32 != columns * bits:
        raise ValueError(f"{shapes[0][-1]} words a row for {columns} columns are of no 1, 2, 3, 4, 5, 6 or 8 bits")
    return shapes[0][0], columns, bits


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    _, columns, _ = _sizes(inputs, args)
    if inputs[0][0] != "U32" or inputs[1][0] not in FLOATS or inputs[2][0] != inputs[1][0]:
        raise ValueError(f"MLX takes U32 words and floats, not {[kind for kind, _ in inputs]}")
    return inputs[1][0], (*inputs[0][1][:-1], columns)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    _, columns, bits = _sizes([(source.dtype, source.shape) for source in sources], args)
    words, scales, biases = (source.read(start, stop) for source in sources)
    numbers = unpack_words(words.reshape(-1, words.shape[-1]), bits, columns)
    scales, biases = (float32_of(rows.reshape(-1, rows.shape[-1]), sources[1].dtype) for rows in (scales, biases))
    group = args["group"]
    values = affine(numbers, None, scales, None, group).reshape(len(numbers), -1, group) + biases[:, :, None]
    return stored(values, sources[1].dtype).reshape(stop - start, *sources[0].shape[1:-1], columns)


OPS = (Op(name="dequant.mlx", rows=_rows, infer=_infer, needs=lambda inputs, args, start, stop: [(start, stop)] * 3),)
SCHEME = Scheme(methods=("mlx",), unpack=unpack, ops=OPS)
