"""Packed weights of Hugging Face directories as the tensors that they stand for, by the scheme that the configuration names.

One module a method; a row in `SCHEMES` makes it known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modelhub import Finding, Op, Tensor

from modelhub_huggingface.packed import (
    autoround,
    awq,
    bitnet,
    bitsandbytes,
    gemma,
    gptq,
    hqq,
    marlin,
    mlx,
    mxfp4,
    quantize,
    quanto,
    quark,
    scaled,
    torchao,
)
from modelhub_huggingface.packed.scheme import FLOATS, Kept, Scheme, Stored, Whole

_METHODS = (gptq, awq, autoround, hqq, marlin, mlx, bitsandbytes, scaled, quark, mxfp4, torchao, bitnet, gemma, quanto)
SCHEMES: tuple[Scheme, ...] = tuple(method.SCHEME for method in _METHODS)


PLAIN = (*FLOATS, "F64", "BOOL")
"""What weights have that nothing packed."""


def unpack(
    tensors: Sequence[Tensor],
    method: str,
    settings: Mapping[str, Any],
    dtype: str,
    read: Callable[[Tensor, int], bytes],
    texts: Mapping[str, str],
) -> Iterator[Tensor | Finding]:
    """The table of a checkpoint that was quantized by ``method``: parts of a whole as ``stored``, wholes as ``logical``. What
    stays packed is listed as it is, and one finding says how many and why the first does. `Stored` says what the rest is."""
    scheme = next((scheme for scheme in SCHEMES if method in scheme.methods), None)
    if scheme is None:
        yield from tensors
        first = next((tensor.name for tensor in tensors if tensor.dtype[:1] in "IU"), "")
        if method and first:
            why = f"stays packed: weights that {method:.40} quantized are not put together here"
            yield Finding("packed", "warning", why, tensor=first)
        return
    by_name = {tensor.name: tensor for tensor in tensors}
    wholes: list[Whole] = []
    kept: list[Kept] = []
    parts: set[str] = set()
    for found in scheme.unpack(Stored(by_name, settings, dtype, read, texts)):
        if isinstance(found, Kept):
            kept.append(found)
        elif found.tensor.name in by_name and found.tensor.name not in found.parts:
            kept.append(Kept(found.parts[0], f"there is a tensor {found.tensor.name} as well"))
        else:
            wholes.append(found)
            parts.update(found.parts)
    for tensor in tensors:
        apart = tensor.name in parts or (wholes and tensor.name.rpartition(".")[2] in scheme.beside)
        yield tensor._replace(view="stored") if apart else tensor
    for found in wholes:
        yield found.tensor
    if not kept and not wholes and any(tensor.dtype not in PLAIN for tensor in tensors):
        yield Finding("packed", "warning", f"stays packed: no weights of {method}", tensor=tensors[0].name)
    if kept:
        more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
        yield Finding("packed", "warning", f"stays packed{more}: {kept[0].reason}", tensor=kept[0].name)


def all_ops() -> Iterator[Op]:
    """What the plugin registers."""
    for scheme in SCHEMES:
        yield from scheme.ops
    yield from quantize.OPS
