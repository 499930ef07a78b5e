"""What adapters add to a matrix, as products of the small matrices that they hold: one function for each method, one `Node` of
float32 with the matrix's rows and, flat, all its other sides.

    LoRA      s B A                                       peft ``tuners/lora/layer.py``
    AdaLoRA   alpha / (rank at the start + 1e-5) B (E A)   ``tuners/adalora/layer.py``
    LoHa      s (W1a W1b) * (W2a W2b), by elements        ``tuners/loha/layer.py``
    LoKr      s W1 x W2, Kronecker's product              ``tuners/lokr/layer.py``; W1 and W2 may be products themselves
    HiRA      s B A, to be multiplied with W by elements  ``tuners/hira/layer.py``
    MiSS      s D, which repeats along the columns        ``tuners/miss/layer.py``
    VeRA      (b B) (d A), with B and A that all share    ``tuners/vera/layer.py``; cut to the sides of the matrix

``flip``: the base keeps the matrix transposed, and so must be what is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from modelhub import Node, ops

from modelhub_peft.config import AdapterConfig
from modelhub_peft.scaling import kronecker, scaled, times

Parts = dict[str, Node]
"""The tensors of one module by part; what a function uses it takes out."""
EMPTY = "its matrices are empty, as DeepSpeed's ZeRO-3 leaves them where they were not gathered before they were saved"


def lora(module: str, parts: Parts, config: AdapterConfig, scale: float, flip: bool) -> Node:
    """``lora_A`` (rank, columns) and ``lora_B`` (rows, rank), or those of convolutions, of which the second is 1 wide."""
    a, b = parts.pop("lora_A"), taken(parts, "lora_B")
    rank = a.shape[0] if a.shape else 0
    if not rank or not b.shape:
        raise ValueError(EMPTY)
    if len(a.shape) > 2 and (flip or prod(b.shape[2:]) != 1):
        raise ValueError(f"factors {list(b.shape)} and {list(a.shape)} of a convolution cannot be merged")
    factor = config.scale_of(module, rank) * scale
    if "lora_E" in parts:
        # What a training has cut away of the rank does not change the scale (``resize_modules_by_rank_pattern``).
        factor = (config.alpha if config.alpha > 0 else config.start_rank) / (config.start_rank + 1e-5) * scale
        a = scaled(ops.affine(a), _vector(parts.pop("lora_E")), 0)
    return _product(flat(b), flat(a), factor, flip)


def embedding(module: str, parts: Parts, config: AdapterConfig, scale: float) -> Node:
    """``lora_embedding_A`` (rank, tokens) and ``lora_embedding_B`` (width, rank), of an embedding (tokens, width)."""
    a, b = parts.pop("lora_embedding_A"), taken(parts, "lora_embedding_B")
    rank = a.shape[0] if a.shape else 0
    if not rank:
        raise ValueError(EMPTY)
    return _product(b, a, config.scale_of(module, rank) * scale, True)


def loha(module: str, parts: Parts, config: AdapterConfig, scale: float) -> Node:
    """``hada_w1_a`` (rows, rank), ``hada_w1_b`` (rank, columns), and the second pair; with ``hada_t1`` (rank, rank, sides of a
    convolution) ``hada_w1_a`` is (rank, rows)."""
    rank = parts["hada_w1_b"].shape[0] if "hada_w1_b" in parts and parts["hada_w1_b"].shape else 0
    if not rank:
        raise ValueError(EMPTY)
    first, second = (_hadamard(parts, number) for number in "12")
    return times(ops.affine(first, config.scale_of(module, rank) * scale), ops.affine(second))


def _hadamard(parts: Parts, number: str) -> Node:
    a, b = (taken(parts, f"hada_w{number}_{side}") for side in "ab")
    core = parts.pop(f"hada_t{number}", None)
    return ops.matmul(a, b) if core is None else with_core(ops.transpose(a), core, b)


def with_core(left: Node, core: Node, right: Node) -> Node:
    """A convolution in three parts: ``left`` (rows, rank), ``core`` (rank, rank, sides), ``right`` (rank, columns), as a matrix
    (rows, columns x sides). (peft ``tuners/loha/layer.py``, ``HadaWeightCP``.)"""
    if len(core.shape) < 3 or len(left.shape) != 2 or len(right.shape) != 2 or not prod(core.shape):
        raise ValueError(f"parts {list(left.shape)}, {list(core.shape)} and {list(right.shape)} make no convolution")
    (outer, inner), sides, columns = core.shape[:2], prod(core.shape[2:]), right.shape[1]
    if (outer, inner) != (left.shape[1], right.shape[0]) or not columns:
        raise ValueError(f"parts {list(left.shape)}, {list(core.shape)} and {list(right.shape)} do not fit each other")
    last = ops.transpose(ops.reshape(core, core.dtype, (outer, inner, sides)), (0, 2, 1))
    wide = ops.matmul(ops.reshape(last, core.dtype, (outer * sides, inner)), right)
    turned = ops.transpose(ops.reshape(wide, wide.dtype, (outer, sides, columns)), (0, 2, 1))
    return ops.matmul(left, ops.reshape(turned, wide.dtype, (outer, columns * sides)))


def lokr(module: str, parts: Parts, config: AdapterConfig, scale: float) -> Node:
    """``lokr_w1`` or ``lokr_w1_a`` and ``lokr_w1_b``; the same of ``w2``, which may be a convolution's."""
    w1, rank1 = _side(parts, "lokr_w1")
    w2, rank2 = _side(parts, "lokr_w2")
    if len(w2.shape) == 3:
        raise ValueError("a convolution of one dimension cannot be merged here: merge_and_unload of peft may")
    factor = config.scale_of(module, rank1 or rank2 or config.rank_of(module)) * scale
    return kronecker(ops.affine(flat(w1), factor), ops.affine(flat(w2)))


def vera(parts: Parts, shared: Mapping[str, Node], shape: tuple[int, int], scale: float, flip: bool) -> Node:
    """``vera_lambda_b`` (rows), ``vera_lambda_d`` (rank); shared ``vera_A`` (rank, widest) and ``vera_B`` (tallest, rank)."""
    b, d = (_vector(taken(parts, f"vera_lambda_{side}")) for side in "bd")
    if "vera_A" not in shared or "vera_B" not in shared:
        raise ValueError(
            "the matrices that all its modules share are not in it (save_projection is false): they come of PyTorch's random "
            "numbers; save it anew with peft under save_projection=True"
        )
    rows, columns = shape[::-1] if flip else shape
    big_a, big_b = shared["vera_A"], shared["vera_B"]
    if len(big_a.shape) != 2 or len(big_b.shape) != 2 or big_a.shape[1] < columns or big_b.shape[0] < rows:
        raise ValueError(f"its shared matrices {list(big_b.shape)} and {list(big_a.shape)} are smaller than {[rows, columns]}")
    left = scaled(ops.affine(ops.slice_(big_b, 0, rows)), b, 0)
    right = scaled(ops.affine(ops.slice_(big_a, 0, columns, axis=1)), d, 0)
    return _product(left, right, scale, flip)


def hira(parts: Parts, scale: float) -> Node:
    """``hira_A`` (rank, columns) and ``hira_B`` (rows, rank): what the matrix is multiplied with, by elements, and added to."""
    return _product(taken(parts, "hira_B"), parts.pop("hira_A"), scale, False)


def miss(parts: Parts, shape: tuple[int, ...], config: AdapterConfig, scale: float) -> Node:
    """``miss_block`` (rank, rows), which comes again every ``rank`` columns; fewer rows ("mini") come again as well."""
    block = parts.pop("miss_block")
    if config.raw.get("init_weights") == "bat" or len(block.shape) != 2 or len(shape) != 2:
        raise ValueError('MiSS of the kind "bat" cannot be merged here: merge_and_unload of peft may')
    (rank, width), (rows, columns) = block.shape, shape
    if not rank or not width or rows % width or (width != rows and config.raw.get("init_weights") != "mini"):
        raise ValueError(f"its block {[rank, width]} does not fit {[rows, columns]}")
    times_whole, rest = divmod(columns, rank)
    whole, part = (
        ops.strided(block, block.dtype, (rows // width, width, count, each), (0, 1, 0, width)) if count and each else None
        for count, each in ((times_whole, rank), (1, rest))
    )
    flat_parts = [ops.reshape(node, block.dtype, (rows, prod(node.shape[2:]))) for node in (whole, part) if node is not None]
    return ops.affine(flat_parts[0] if len(flat_parts) == 1 else ops.concat(flat_parts, axis=1), scale)


def taken(parts: Parts, part: str) -> Node:
    if part not in parts:
        raise ValueError(f"its {part} is missing")
    return parts.pop(part)


def flat(node: Node) -> Node:
    """Rows, and all other sides as one."""
    if len(node.shape) < 2:
        raise ValueError(f"a factor has the shape {list(node.shape)}, which is no matrix")
    return node if len(node.shape) == 2 else ops.reshape(node, node.dtype, (node.shape[0], prod(node.shape[1:])))


def _product(left: Node, right: Node, factor: float, flip: bool) -> Node:
    # The factor that is sliced comes first; the other one, which is small, is held in memory. What both are scaled with is
    # cheaper put into one of them than into their product.
    first, second = (ops.transpose(right), ops.transpose(left)) if flip else (left, right)
    return ops.matmul(ops.affine(first, factor) if factor != 1 else first, second)


def _side(parts: Parts, name: str) -> tuple[Node, int]:
    """One side of a Kronecker product, and its rank where it is a product itself (else 0)."""
    if name in parts:
        return parts.pop(name), 0
    a, b = taken(parts, f"{name}_a"), flat(taken(parts, f"{name}_b"))
    core = parts.pop(name.replace("w", "t"), None)
    return ops.matmul(a, b) if core is None else with_core(ops.transpose(a), core, b), b.shape[0]


def _vector(node: Node) -> Node:
    return ops.affine(ops.reshape(node, node.dtype, (prod(node.shape),)))
