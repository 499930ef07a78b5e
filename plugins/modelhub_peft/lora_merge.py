"""Puts a LoRA file (kohya's or diffusers' names) on a diffusion model: a pipeline, one of its components, or a single file.

``W + alpha / rank * up @ down`` for linear layers and convolutions, as sd-scripts' ``merge_lora.py`` and diffusers' ``fuse_lora``
have it. LyCORIS's other products, and what a text encoder of SDXL has in one matrix in a single file, are refused, and said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

from modelhub import Combination, Inline, Node, Table, Tensor, ops

from modelhub_peft import blocks, output
from modelhub_peft.scaling import scaled

_DOWN = {
    ".lora_down.weight": ".lora_up.weight",
    ".lora_A.weight": ".lora_B.weight",
    ".lora.down.weight": ".lora.up.weight",
}
_ALPHA = ".alpha"
_METADATA = "lora_adapter_metadata"
"""Where diffusers notes the configurations, as JSON (``loaders/lora_base.py``)."""


def derive(base: Table, parts: Sequence[tuple[Table, float]]) -> Table:
    """The base with the LoRAs on it, in its own names and dtypes. ValueError says what does not fit."""
    tensors = {tensor.name: tensor for tensor in base.logical}
    places = blocks.modules(tensors)
    values: dict[str, Node] = {}
    for adapter, strength in parts:
        matrices = {tensor.name: tensor for tensor in adapter.logical}
        alphas = _noted(adapter)
        used: set[str] = set()
        for name, down in matrices.items():
            ending = next((ending for ending in _DOWN if name.endswith(ending)), "")
            if not ending:
                continue
            module = name.removesuffix(ending)
            up, alpha = matrices.get(module + _DOWN[ending]), matrices.get(module + _ALPHA)
            if up is None:
                raise ValueError(f"{module} has no {_DOWN[ending][1:]}")
            target = places.get(module)
            if target is None:
                raise ValueError(f"the base has no module {module}")
            now = values.get(target) or _node(tensors[target])
            values[target] = _added(now, _node(up), _node(down), _node(alpha) if alpha else alphas.get(module), strength, target)
            used |= {name, up.name, module + _ALPHA}
        rest = [name for name in matrices if name not in used]
        if rest or not used:
            raise ValueError(f"{rest[0] if rest else 'it'} is no part of a LoRA of two matrices, which is all that is merged")
    return output.finished(base, values, {}, ())


COMBINATION = Combination(name="lora", source="lora", derive=derive)


def _added(now: Node, up: Node, down: Node, alpha: Node | float | None, strength: float, name: str) -> Node:
    rank = down.shape[0] if down.shape else 0
    if not rank or not up.shape or len(now.shape) < 2:
        raise ValueError(f"{name}: matrices {list(up.shape)} and {list(down.shape)} cannot be put on {list(now.shape)}")
    left = ops.reshape(up, up.dtype, (up.shape[0], prod(up.shape[1:])))
    right = ops.affine(ops.reshape(down, down.dtype, (rank, prod(down.shape[1:]))), strength / rank)
    if isinstance(alpha, Node):
        right = scaled(right, _spread(alpha, rank), 0)
    else:
        right = ops.affine(right, rank if alpha is None else alpha)
    flat = (now.shape[0], prod(now.shape[1:]))
    if (left.shape[0], right.shape[1]) != flat or left.shape[1] != rank:
        raise ValueError(f"{name}: matrices {list(up.shape)} and {list(down.shape)} do not fit {list(now.shape)}")
    after = ops.add(ops.reshape(now, now.dtype, flat), ops.matmul(left, right))
    return after if now.shape == flat else ops.reshape(after, "F32", now.shape)


def _spread(alpha: Node, rank: int) -> Node:
    """A single number as a vector of ``rank`` equal ones."""
    import numpy as np

    if prod(alpha.shape) != 1:
        raise ValueError(f"an alpha of the shape {list(alpha.shape)}, one number was expected")
    ones = ops.typed(Inline(np.ones(rank, "<f4").tobytes()), "F32", (rank, 1))
    return ops.reshape(ops.matmul(ones, ops.affine(ops.reshape(alpha, alpha.dtype, (1, 1)))), "F32", (rank,))


def _noted(adapter: Table) -> Mapping[str, float]:
    """Alphas by module, where the file's metadata has the configuration; it may give some modules their own."""
    try:
        said = json.loads(adapter.metadata.stored.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    found: dict[str, float] = {}
    for tensor in adapter.logical if isinstance(said, dict) else ():
        module = next((tensor.name.removesuffix(ending) for ending in _DOWN if tensor.name.endswith(ending)), "")
        component, _, path = module.partition(".")
        alpha, own = said.get(f"{component}.lora_alpha"), said.get(f"{component}.alpha_pattern")
        for pattern, value in own.items() if isinstance(own, dict) else ():
            if path == pattern or path.endswith(f".{pattern}"):
                alpha = value
        if said.get(f"{component}.use_rslora") is True:
            raise ValueError("it is rsLoRA, which is not merged from a single file")
        if module and type(alpha) in (int, float):
            found[module] = float(alpha)
    return found


def _node(tensor: Tensor) -> Node:
    if tensor.value is None:
        raise ValueError(f"{tensor.name} is a {tensor.unsupported}")
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)
