"""What PyTorch calls the weights that transformers' models for TensorFlow and for Flax were saved with, and how they lie there.

Facts: transformers 4, ``modeling_tf_pytorch_utils.py`` and ``modeling_flax_pytorch_utils.py``, by which its models went from one
framework to another, and the models' own sources where those two leave a shape to the layer that takes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """A weight's name in PyTorch; ``axes``: the order that its sides take (empty: as they are); ``squeezed``: a first side of 1
    goes."""

    name: str
    axes: tuple[int, ...] = ()
    squeezed: bool = False


_NUMBER = re.compile(r":\d+$")
_SCOPE = re.compile(r"tf_?[a-z0-9]+(_[a-z0-9]+)*")
"""What Keras makes of the name of a class: ``TFBertModel`` is ``tf_bert_model``, ``TFGPT2Model`` is ``tfgpt2_model``."""
_LAST = {
    "kernel": "weight", "embeddings": "weight", "embedding": "weight", "gamma": "weight", "scale": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var", "mean": "running_mean", "var": "running_var",
    "depthwise_kernel": "depthwise.weight", "pointwise_kernel": "pointwise.weight",
}  # fmt: skip
_TENSORFLOW = {"kernel", "embeddings", "gamma", "beta", "moving_mean", "moving_variance", "depthwise_kernel", "pointwise_kernel"}
_FLAX = {"kernel", "embedding", "scale", "mean", "var"}
_CONVOLUTIONS = {3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
"""Height, width, inputs, outputs becomes outputs, inputs, height, width; and so with fewer sides and with more."""
_COLLECTIONS = ("params", "batch_stats")
"""What Flax keeps a model's variables in, where it has more than one kind of them."""


def of_tensorflow(name: str, shape: Sequence[int]) -> Target:
    """What a variable of a model for TensorFlow is, by the name that it has from its layer on.

    Lists are counted behind ``_._``; what stands before ``___`` is a level's name in TensorFlow alone."""
    levels = _within([level for level in _NUMBER.sub("", name).split("/") if level])
    levels = [level.rpartition("___")[2] for level in levels[:-1]] + levels[-1:]
    levels = [part for level in levels for part in level.split("_._") if part]
    if not levels:
        return Target(name)
    *above, last = levels
    name = ".".join([*above, _LAST[last] if last in _TENSORFLOW else last])
    rank = len(shape)
    if last == "kernel" and rank in _CONVOLUTIONS:
        return Target(name, _CONVOLUTIONS[rank])
    if last == "depthwise_kernel" and rank == 3:  # width, channels, 1: PyTorch has channels, 1, width
        return Target(name, (1, 2, 0))
    if last == "depthwise_kernel" and rank == 4:
        return Target(name, (2, 3, 0, 1))
    if (
        last == "weight_g" and rank == 3
    ):  # the lengths of a convolution's kernels: one for each place in PyTorch, as in TensorFlow
        return Target(name, (2, 1, 0))
    turned = last in ("kernel", "pointwise_kernel", "depthwise_kernel") or not {"emb_projs", "out_projs"}.isdisjoint(levels)
    if turned and rank > 1:
        return Target(name, tuple(range(rank))[::-1])
    # The biases of GPT's own kind of layer; and CLIP's one number, a list of one in TensorFlow.
    return Target(name, squeezed=(last == "bias" and rank == 2) or (last == "logit_scale" and rank == 1))


def _within(levels: list[str]) -> list[str]:
    """A variable's levels without the scope of the model. Weights that layers share are listed under each of them, by names of
    their own: from the model's scope on, or from a scope that is called as they are (``shared/shared/embeddings``)."""
    for at in (1, 0):
        shared = len(levels) == at + 3 and levels[at] == levels[at + 1] and levels[-1] in ("embeddings", "weight")
        if shared or (len(levels) > at + 1 and _SCOPE.fullmatch(levels[at])):
            return levels[at + 1 :]
    return levels[-1:] if len(levels) == 2 and levels[0] == levels[1] else levels


def of_flax(path: str, shape: Sequence[int]) -> Target:
    """What a variable of a model for Flax is, by the keys that lead to it."""
    levels = path.split("/")
    if len(levels) > 1 and levels[0] in _COLLECTIONS:
        levels = levels[1:]
    *above, last = levels
    name = ".".join([*above, _LAST[last] if last in _FLAX else last])
    rank = len(shape)
    if last == "kernel" and rank > 1:
        return Target(name, _CONVOLUTIONS[rank] if rank in (4, 5) else tuple(range(rank))[::-1])
    return Target(name)
