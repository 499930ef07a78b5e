"""Puts a LoRA file (kohya's, diffusers' or LyCORIS's names) on a diffusion model: a pipeline, a component of one, a single file.

    LoRA   alpha / rank up @ down, of linear layers and convolutions    sd-scripts ``networks/merge_lora.py``
    LoHa   alpha / rank (w1_a @ w1_b) * (w2_a @ w2_b), by elements      LyCORIS ``functional/loha.py``
    LoKr   alpha / rank w1 x w2, Kronecker's product; without a scale
           where neither of them is a product itself                    ``modules/lokr.py``
    full   the difference itself                                        ``modules/full.py``
    DoRA   that, with every row, or all of an input's column, brought
           to the length that was learnt for it                         ``modules/locon.py``, ``apply_weight_decompose``

Convolutions may be in three parts (``lora_mid``, ``hada_t1``, ``lokr_t2``). Of DoRA that applies with another strength than 1, as
much is added as there is between the base and all of it (ComfyUI ``weight_adapter/base.py``, ``weight_decompose``). What has
more parts is refused, and said; so is what a single file of SDXL has in one matrix and a LoRA in three (its second text encoder).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

from modelhub import Combination, Inline, Node, Table, Tensor, ops

from modelhub_peft import blocks, output
from modelhub_peft.products import with_core
from modelhub_peft.scaling import brought_to, kronecker, scaled, times

_ENDINGS = {
    ".lora_down.weight": "down", ".lora_A.weight": "down", ".lora.down.weight": "down",
    ".lora_linear_layer.down.weight": "down", ".lora_A.default.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_B.default.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_up.weight": "up", ".lora_B.weight": "up", ".lora.up.weight": "up",
    ".alpha": "alpha", ".diff": "diff", ".lora_mid.weight": "mid",
    ".dora_scale": "lengths", ".lora_magnitude_vector": "lengths", ".lora_magnitude_vector.weight": "lengths",
    **{f".{part}": part for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f".{part}": part for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
}  # fmt: skip
"""How a tensor's name ends -> which part of a module it is."""
_METADATA = "lora_adapter_metadata"
"""Where diffusers notes the configurations, as JSON (``loaders/lora_base.py``)."""

Parts = dict[str, Node]


def derive(base: Table, parts: Sequence[tuple[Table, float]]) -> Table:
    """The base with the LoRAs on it, in its own names and dtypes. ValueError says what does not fit."""
    tensors = {tensor.name: tensor for tensor in base.logical}
    places = blocks.modules(tensors)
    values: dict[str, Node] = {}
    for adapter, strength in parts:
        noted = _noted(adapter)
        modules = _modules(adapter)
        for module, own in modules.items():
            target = places.get(module)
            if target is None:
                raise ValueError(f"the base has no module {module}")
            now = values.get(target) or _node(tensors[target])
            try:
                values[target] = _added(now, own, noted.get(module), strength)
            except ValueError as error:
                raise ValueError(f"{module}: {error}") from error
        if not modules:
            raise ValueError("it has no tensors")
    return output.finished(base, values, {}, ())


COMBINATION = Combination(name="lora", source="lora", derive=derive)


def _modules(adapter: Table) -> dict[str, Parts]:
    """The tensors of each module by part."""
    found: dict[str, Parts] = {}
    for tensor in adapter.logical:
        ending = next((ending for ending in _ENDINGS if tensor.name.endswith(ending)), "")
        if not ending:
            raise ValueError(f"{tensor.name} is no part of a LoRA, DoRA, LoHa or LoKr, which is all that is merged")
        kept = "_lora" * ending.startswith("_")
        found.setdefault(blocks.plain(tensor.name.removesuffix(ending) + kept), {})[_ENDINGS[ending]] = _node(tensor)
    return found


def _added(now: Node, parts: Parts, noted: float | None, strength: float) -> Node:
    if len(now.shape) < 2:
        raise ValueError(f"the base has a vector {list(now.shape)} there, and no matrix")
    alpha, lengths = parts.pop("alpha", noted), parts.pop("lengths", None)
    if lengths is None:
        return _plus(now, _delta(parts, alpha, strength))
    whole = _brought_to(_plus(now, _delta(parts, alpha, 1.0)), lengths)
    return whole if strength == 1 else ops.add(ops.affine(now, 1 - strength), ops.affine(whole, strength))


def _delta(parts: Parts, alpha: Node | float | None, strength: float) -> Node:
    if "hada_w1_a" in parts:
        first, rank = _pair(parts, "hada_w1", "hada_t1")
        second, _ = _pair(parts, "hada_w2", "hada_t2")
        delta = times(_scaled(first, alpha, rank, strength), ops.affine(second))
    elif any(part.startswith("lokr_") for part in parts):
        first, one = _side(parts, "lokr_w1")
        second, other = _side(parts, "lokr_w2")
        rank = one or other
        delta = kronecker(_scaled(first, alpha if rank else None, rank or 1, strength), ops.affine(second))
    elif "diff" in parts:
        delta = ops.affine(_flat(parts.pop("diff")), strength)
    else:
        down, up = _flat(_taken(parts, "down")), _flat(_taken(parts, "up"))
        down = _scaled(down, alpha, down.shape[0], strength)
        delta = with_core(up, parts.pop("mid"), down) if "mid" in parts else ops.matmul(up, down)
    if parts:
        raise ValueError(f"its {next(iter(parts))} has no counterpart")
    return delta


def _plus(now: Node, delta: Node) -> Node:
    flat = (now.shape[0], prod(now.shape[1:]))
    if delta.shape != flat:
        raise ValueError(f"it changes a matrix {list(delta.shape)}, the base has {list(now.shape)}")
    after = ops.add(ops.reshape(now, now.dtype, flat), delta)
    return after if now.shape == flat else ops.reshape(after, "F32", now.shape)


def _brought_to(value: Node, lengths: Node) -> Node:
    """``value`` with the length of each of its rows, or of what each input has in all rows, as DoRA's magnitudes say: which of
    the two, their shape tells."""
    rows, columns, sides = value.shape[0], value.shape[1], prod(value.shape[2:])
    each = ops.affine(ops.reshape(lengths, lengths.dtype, (prod(lengths.shape),)))
    if each.shape == (rows,) and (len(lengths.shape) == 1 or lengths.shape[0] == rows):
        flat = ops.reshape(value, value.dtype, (rows, columns * sides))
        return ops.reshape(brought_to(flat, each, flat), "F32", value.shape)
    if each.shape != (columns,):
        raise ValueError(f"its magnitudes {list(lengths.shape)} are neither of {rows} outputs nor of {columns} inputs")
    turned = ops.transpose(ops.reshape(value, value.dtype, (rows, columns, sides)), (1, 0, 2))
    flat = ops.reshape(turned, value.dtype, (columns, rows * sides))
    back = ops.reshape(brought_to(flat, each, flat), "F32", (columns, rows, sides))
    return ops.reshape(ops.transpose(back, (1, 0, 2)), "F32", value.shape)


def _pair(parts: Parts, name: str, core: str = "") -> tuple[Node, int]:
    """The product of ``NAME_a`` and ``NAME_b``, with ``core`` between them where there is one, and their rank."""
    left, right = _flat(_taken(parts, f"{name}_a")), _flat(_taken(parts, f"{name}_b"))
    if core in parts:
        return with_core(ops.transpose(left), parts.pop(core), right), right.shape[0]
    return ops.matmul(left, right), right.shape[0]


def _side(parts: Parts, name: str) -> tuple[Node, int]:
    """A factor, and its rank where it is a product itself (else 0)."""
    return (_flat(parts.pop(name)), 0) if name in parts else _pair(parts, name, name.replace("w", "t"))


def _scaled(matrix: Node, alpha: Node | float | None, rank: int, strength: float) -> Node:
    """A factor times ``strength * alpha / rank``; without an alpha, that is the rank."""
    if not isinstance(alpha, Node):
        return ops.affine(matrix, strength if alpha is None else strength * alpha / rank)
    return scaled(ops.affine(matrix, strength / rank), _spread(alpha, matrix.shape[0]), 0)


def _spread(alpha: Node, count: int) -> Node:
    """A single number as a vector of ``count`` equal ones."""
    import numpy as np

    if prod(alpha.shape) != 1:
        raise ValueError(f"its alpha has the shape {list(alpha.shape)}, one number was expected")
    ones = ops.typed(Inline(np.ones(count, "<f4").tobytes()), "F32", (count, 1))
    return ops.reshape(ops.matmul(ones, ops.affine(ops.reshape(alpha, alpha.dtype, (1, 1)))), "F32", (count,))


def _noted(adapter: Table) -> Mapping[str, float]:
    """Alphas by module, where the file's metadata has the configuration; it may give some modules their own."""
    try:
        said = json.loads(adapter.metadata.stored.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    found: dict[str, float] = {}
    for tensor in adapter.logical if isinstance(said, dict) else ():
        module = next((tensor.name.removesuffix(ending) for ending in _ENDINGS if tensor.name.endswith(ending)), "")
        component, _, path = module.partition(".")
        if said.get(f"{component}.use_rslora") is True:
            raise ValueError("it is rsLoRA, which is not merged from a single file")
        alpha, own = said.get(f"{component}.lora_alpha"), said.get(f"{component}.alpha_pattern")
        for pattern, value in own.items() if isinstance(own, dict) else ():
            if path == pattern or path.endswith(f".{pattern}"):
                alpha = value
        if module and type(alpha) in (int, float):
            found[module] = float(alpha)
    return found


def _taken(parts: Parts, part: str) -> Node:
    if part not in parts:
        raise ValueError(f"its {part} is missing")
    return parts.pop(part)


def _flat(node: Node) -> Node:
    """Rows, and all other sides as one."""
    if len(node.shape) < 2 or not prod(node.shape):
        raise ValueError(f"a factor has the shape {list(node.shape)}, which is no matrix")
    return node if len(node.shape) == 2 else ops.reshape(node, node.dtype, (node.shape[0], prod(node.shape[1:])))


def _node(tensor: Tensor) -> Node:
    if tensor.value is None:
        raise ValueError(f"{tensor.name} is a {tensor.unsupported}")
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)
