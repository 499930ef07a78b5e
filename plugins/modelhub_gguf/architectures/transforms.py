"""What is done to tensors on their way to GGUF and back: a few named functions that rows are composed of.

A `Transform` changes one tensor, a `Regroup` makes several out of several. All of them build expressions; none reads a weight.
Those that move single elements, or compute, take block-quantized tensors as floats (`as_floats`); those that move whole rows
leave them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelhub import Node, Tensor, dtypes, ops

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.records import Regroup, Transform

Heads = Callable[[Config], int]


def node_of(tensor: Tensor) -> Node:
    """A tensor's value as an expression that knows its dtype and shape. ValueError where it has none."""
    if tensor.value is None:
        raise ValueError(f"its value cannot be had: it is a {tensor.unsupported}")
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)


def with_node(tensor: Tensor, node: Node) -> Tensor:
    return tensor._replace(dtype=node.dtype, shape=node.shape, value=node)


def as_dtype(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor encoded as ``dtype``; as it is where it is so already."""
    if tensor.dtype == dtype or tensor.value is None:
        return tensor
    return tensor._replace(dtype=dtype, value=ops.cast(tensor.value, tensor.dtype, tensor.shape, dtype))


def as_floats(tensor: Tensor) -> Tensor:
    """The tensor as F32 where it packs several elements together, else as it is."""
    return as_dtype(tensor, "F32") if dtypes.get(tensor.dtype).block > 1 else tensor


def chain(*transforms: Transform) -> Transform:
    """One after another; on the way back in the opposite order."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        for transform in transforms:
            tensor = transform.forward(tensor, config)
        return tensor

    def backward(tensor: Tensor, config: Config) -> Tensor:
        for transform in reversed(transforms):
            tensor = transform.backward(tensor, config)
        return tensor

    return Transform(", ".join(transform.name for transform in transforms), forward, backward)


# --- rows ---------------------------------------------------------------------------------------------------------


def interleave_heads(heads: Heads) -> Transform:
    """transformers rotates the two halves of a head, GGUF's Llama its even and odd elements: a head's rows come in the order 0,
    n/2, 1, n/2 + 1, and so on. (llama.cpp ``conversion/llama.py``, ``LlamaModel.permute``.)"""

    def order(halves_first: bool) -> Callable[[Tensor, Config], Tensor]:
        def apply(tensor: Tensor, config: Config) -> Tensor:
            count, rows = heads(config), tensor.shape[0] if tensor.shape else 0
            if not count or rows % (2 * count):
                raise ValueError(f"{rows} rows are not those of {count} heads with two halves each")
            half = rows // count // 2
            dims = (count, 2, half) if halves_first else (count, half, 2)
            return with_node(tensor, ops.permute(node_of(tensor), dims, (0, 2, 1)))

        return apply

    return Transform("heads interleaved", order(True), order(False))


def reorder_rows(dims: Callable[[Config, int], Sequence[int]], axes: Sequence[int]) -> Transform:
    """Rows split into ``dims(config, rows)`` and put in the order ``axes`` (queries, keys and values head by head become all
    queries, all keys, all values with dims (heads, 3, n) and axes (1, 0, 2))."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        return with_node(tensor, ops.permute(node_of(tensor), dims(config, tensor.shape[0]), axes))

    def backward(tensor: Tensor, config: Config) -> Tensor:
        sides = dims(config, tensor.shape[0])
        inverse = sorted(range(len(axes)), key=lambda place: axes[place])
        return with_node(tensor, ops.permute(node_of(tensor), [sides[axis] for axis in axes], inverse))

    return Transform("rows reordered", forward, backward)


QUERY_HEADS = interleave_heads(lambda config: config.heads)
KEY_HEADS = interleave_heads(lambda config: config.kv_heads)


def _ungrouped(tensor: Tensor, config: Config, heads: Heads, kv_heads: Heads) -> list[Tensor]:
    """The queries, the keys and the values of rows in which each key stands with its value behind the queries that share it."""
    count, groups = heads(config), kv_heads(config)
    if not groups or not count or count % groups or tensor.shape[0] % (count + 2 * groups):
        raise ValueError(f"{tensor.shape[0]} rows are not {count} heads and {groups} keys and values")
    each, size, rest = count // groups, tensor.shape[0] // (count + 2 * groups), tensor.shape[1:]
    whole = ops.reshape(node_of(tensor), tensor.dtype, (groups, each + 2, size, *rest))
    return [
        with_node(tensor, ops.reshape(ops.slice_(whole, start, stop, 1), tensor.dtype, (groups * (stop - start) * size, *rest)))
        for start, stop in ((0, each), (each, each + 1), (each + 1, each + 2))
    ]


def _grouped(parts: Sequence[Tensor], config: Config, kv_heads: Heads) -> Tensor:
    """The inverse of `_ungrouped`."""
    groups = kv_heads(config)
    if len({part.dtype for part in parts}) > 1:
        parts = [as_dtype(part, "F32") for part in parts]
    if not groups or parts[1].shape[0] % groups or parts[0].shape[0] % parts[1].shape[0] or parts[1].shape != parts[2].shape:
        raise ValueError(f"{', '.join(str(list(part.shape)) for part in parts)} are not queries, and {groups} keys and values")
    size, rest, dtype = parts[1].shape[0] // groups, parts[0].shape[1:], parts[0].dtype
    shaped = [ops.reshape(node_of(part), dtype, (groups, part.shape[0] // groups // size, size, *rest)) for part in parts]
    rows = sum(part.shape[0] for part in parts)
    return with_node(parts[0], ops.reshape(ops.concat(shaped, 1), dtype, (rows, *rest)))


def grouped_rows(heads: Heads, kv_heads: Heads) -> Transform:
    """Rows in which the queries that share a key stand before it and its value, group by group (Falcon): all queries, all keys,
    all values in GGUF."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        return _joined(_ungrouped(tensor, config, heads, kv_heads), 0)

    def backward(tensor: Tensor, config: Config) -> Tensor:
        count, keys = heads(config), kv_heads(config)
        size = tensor.shape[0] // max(count + 2 * keys, 1)
        return _grouped(_cut(tensor, [count * size, keys * size, keys * size], 0), config, kv_heads)

    return Transform("rows apart", forward, backward)


def skip_rows(count: Callable[[Config], int]) -> Transform:
    """The first rows left out (RoBERTa's positions start behind the padding). There is no way back: they are zeros there."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        return with_node(tensor, ops.slice_(node_of(tensor), min(count(config), tensor.shape[0]), tensor.shape[0]))

    def backward(tensor: Tensor, config: Config) -> Tensor:
        raise ValueError("rows that GGUF does not hold cannot be restored")

    return Transform("first rows left out", forward, backward)


# --- elements -----------------------------------------------------------------------------------------------------


def _transposed(tensor: Tensor, config: Config) -> Tensor:
    if len(tensor.shape) < 2:
        return tensor  # a bias
    axes = (*range(len(tensor.shape) - 2), len(tensor.shape) - 1, len(tensor.shape) - 2)
    return with_node(tensor, ops.transpose(node_of(as_floats(tensor)), axes))


TRANSPOSE = Transform("transposed", _transposed, _transposed)
"""The last two axes exchanged (GPT-2's ``Conv1D`` keeps its matrices so); vectors stay."""


def add(offset: float, scale: float = 1.0) -> Transform:
    """``value * scale + offset`` in float32 (Gemma's norms: their weight is w, what is multiplied with is 1 + w)."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        return with_node(tensor, ops.affine(node_of(tensor), scale, offset))

    def backward(tensor: Tensor, config: Config) -> Tensor:
        return with_node(tensor, ops.affine(node_of(tensor), 1 / scale, -offset / scale))

    return Transform(f"{offset:+g}", forward, backward)


ADD_ONE = add(1.0)


def reshaped(shape: Callable[[tuple[int, ...], Config], tuple[int, ...]]) -> Transform:
    """The same elements under other sides: ``shape(sides, config)``. On the way back they keep GGUF's."""

    def forward(tensor: Tensor, config: Config) -> Tensor:
        return with_node(tensor, ops.reshape(node_of(tensor), tensor.dtype, shape(tensor.shape, config)))

    return Transform("reshaped", forward, lambda tensor, config: tensor)


# --- several tensors ----------------------------------------------------------------------------------------------

Sizes = Callable[[Sequence[int], Config, int], Sequence[int]]
"""``sizes(shape, config, parts)``: the lengths along an axis into which a tensor of ``shape`` is cut."""


def equally(axis: int) -> Sizes:
    def sizes(shape: Sequence[int], config: Config, parts: int) -> Sequence[int]:
        if shape[axis] % parts:
            raise ValueError(f"{list(shape)} does not divide into {parts} along axis {axis}")
        return [shape[axis] // parts] * parts

    return sizes


def _cut(tensor: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    if sum(sizes) != tensor.shape[axis]:
        raise ValueError(f"{list(tensor.shape)} is not {' + '.join(map(str, sizes))} along axis {axis}")
    whole, at, parts = node_of(tensor), 0, []
    for size in sizes:
        parts.append(with_node(tensor, ops.slice_(whole, at, at + size, axis)))
        at += size
    return parts


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Parts of several dtypes are joined as F32."""
    same = len({part.dtype for part in parts}) == 1
    return with_node(parts[0], ops.concat([node_of(part if same else as_dtype(part, "F32")) for part in parts], axis))


def split(parts: int, sizes: Sizes | None = None, axis: int = 0) -> Regroup:
    """One tensor cut along ``axis`` into ``parts`` (gate and up in one matrix); on the way back they are joined."""
    measure = sizes or equally(axis)

    def forward(tensors: Sequence[Tensor], config: Config) -> Sequence[Tensor]:
        return _cut(tensors[0], measure(tensors[0].shape, config, parts), axis)

    return Regroup(f"cut in {parts}", forward, lambda tensors, config: [_joined(tensors, axis)])


def join(parts: int, sizes: Sizes | None = None, axis: int = 0) -> Regroup:
    """``parts`` tensors joined along ``axis`` (queries, keys and values as one matrix); on the way back it is cut."""
    measure = sizes or equally(axis)

    def backward(tensors: Sequence[Tensor], config: Config) -> Sequence[Tensor]:
        return _cut(tensors[0], measure(tensors[0].shape, config, parts), axis)

    return Regroup(f"{parts} joined", lambda tensors, config: [_joined(tensors, axis)], backward)


def grouped(heads: Heads, kv_heads: Heads) -> Regroup:
    """The queries, the keys and the values of one matrix whose rows stand as `grouped_rows` says (InternLM 2)."""

    def forward(tensors: Sequence[Tensor], config: Config) -> Sequence[Tensor]:
        return _ungrouped(tensors[0], config, heads, kv_heads)

    return Regroup("groups apart", forward, lambda tensors, config: [_grouped(tensors, config, kv_heads)])
