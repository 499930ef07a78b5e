"""Directories and files that transformers saved from its models for TensorFlow (``tf_model.h5``) and Flax
(``flax_model.msgpack``), with the tensors as its models for PyTorch have them. Reads no weights.

Transformers 5 loads neither; what its version 4 made of them is made here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from modelhub import Checkpoint, Extent, Finding, Inline, Node, Tensor, ops, read_as, read_index

from modelhub_huggingface.frameworks.names import Target, of_flax, of_tensorflow

KERAS, FLAX = "keras", "flax"
CONTAINERS = (KERAS, FLAX)
CHECK = "huggingface-index"


def read(container: str, checkpoint: Checkpoint, weights: Sequence[str]) -> Iterator[Tensor | Finding]:
    """The tensors of ``weights`` (paths; an index may be among them), as PyTorch has them."""
    found: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for path in weights:
        if path.endswith(".json"):
            continue
        for record in read_as(container, checkpoint, [path]):
            if isinstance(record, Tensor):
                owners[record.name] = os.path.basename(path)
                if record.view != "stored":  # what is, is of training, which begins anew
                    tensor = translated(container, record)
                    found[tensor.name] = tensor
            elif isinstance(record, Finding):
                yield record
    yield from found.values()
    yield from counters(found)
    for path in weights:
        if path.endswith(".json"):
            yield from _check(container, checkpoint, path, owners)


def _check(container: str, checkpoint: Checkpoint, index: str, owners: Mapping[str, str]) -> Iterator[Finding]:
    """What the index promises against what the parts hold. The names in that of TensorFlow's have the model's scope as well."""
    present = set(owners.values())
    for key, part in read_index(checkpoint.open(index)).items():
        name = key.partition("/")[2] if container == KERAS and "/" in key else key
        if part in present and owners.get(name) != part:
            message = f"the index places {key[:200]!r} in {part}, it is in {owners.get(name, 'none')}"
            yield Finding(CHECK, "error", message, tensor=name, file=os.path.basename(index))
            return


def translated(container: str, tensor: Tensor) -> Tensor:
    """A tensor as PyTorch has it. Weights that several layers share stand in a file of TensorFlow's once for each, and all are
    called the same then: the last one counts, as it does in transformers."""
    of = of_flax if container == FLAX else of_tensorflow
    return changed(tensor, of(tensor.name, tensor.shape))


def counters(names: Collection[str]) -> Iterator[Tensor]:
    """What PyTorch's batch normalization keeps beside its running averages, and the others do not: how many batches it saw. It is
    nought, as it is where version 4 of transformers loads such a model."""
    for name in names:
        if name.endswith(".running_mean") and (counter := f"{name.removesuffix('running_mean')}num_batches_tracked") not in names:
            yield Tensor(counter, "I64", (), Inline(bytes(8)), view="logical")


def changed(tensor: Tensor, target: Target) -> Tensor:
    """The tensor under its name, with its sides as PyTorch has them."""
    if tensor.value is None:
        return tensor._replace(name=target.name)
    value: Extent | Inline | Node = tensor.value
    shape = tensor.shape
    if target.axes and any(side != 1 for side in shape):
        value = ops.transpose(ops.typed(value, tensor.dtype, shape), target.axes)
        shape = value.shape
    elif target.axes:
        shape = tuple(shape[axis] for axis in target.axes)
        value = _seen(value, tensor.dtype, shape)
    elif target.squeezed and shape[:1] == (1,):
        shape = shape[1:]
        value = _seen(value, tensor.dtype, shape)
    return tensor._replace(name=target.name, shape=shape, value=value)


def _seen(value: Extent | Inline | Node, dtype: str, shape: Sequence[int]) -> Extent | Node:
    return value if isinstance(value, Extent) else ops.reshape(value, dtype, shape)
