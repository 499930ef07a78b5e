"""MXFP4 as gpt-oss ships it: ``NAME_blocks`` (experts, rows, groups, 16 bytes) and ``NAME_scales`` (experts, rows, groups).

Two FP4 numbers a byte, the low half first; a scale is a power of two with the bias 127, for 32 numbers. The whole is
(experts, columns, rows): transformers transposes it as it loads (``integrations/mxfp4.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import ops

from modelhub_huggingface.packed import rows
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole, lack, whole

GROUP = 32


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """Every pair of ``_blocks`` and ``_scales``."""
    dtype = source.dtype if source.dtype in FLOATS else "BF16"
    for name, tensor in source.tensors.items():
        if not name.endswith("_blocks"):
            continue
        stem = name.removesuffix("_blocks")
        scale = f"{stem}_scales"
        why = lack(source.tensors, {name: ("U8",), scale: ("U8",)})
        shape = tensor.shape
        if not why and (len(shape) != 4 or shape[3] != GROUP // 2 or source.tensors[scale].shape != shape[:3]):
            why = f"{list(shape)} and scales {list(source.tensors[scale].shape)} are no blocks of 32"
        if why:
            yield Kept(name, why)
            continue
        experts, count, groups, _ = shape
        numbers, scales = tensor.value, source.tensors[scale].value
        assert numbers is not None
        assert scales is not None
        flat = ops.typed(numbers, "U8", (experts * count, groups * GROUP // 2))
        try:
            value = ops.dequant(
                "rows",
                flat,
                ops.typed(scales, "U8", (experts * count, groups)),
                **rows.layout(groups * GROUP, dtype, group=GROUP),
            )
        except ValueError as error:
            yield Kept(name, str(error))
            continue
        apart = ops.reshape(value, dtype, (experts, count, groups * GROUP))
        yield whole(stem, ops.transpose(apart, (0, 2, 1)), (name, scale))


SCHEME = Scheme(methods=("mxfp4",), unpack=unpack)
