"""Whether what stands in every part of a checkpoint of Meta's is the same in each: the model takes the first part's."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, Extent, Finding, Node, Table, Tensor, read_as

from modelhub_meta.layout import PARAMS, parts_of, read_params
from modelhub_meta.reader import axis_of

COPIES = "meta-copies"
_STEP = 4 << 20


def copies(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """An error for each tensor that is not cut, and whose bytes differ between parts."""
    params = read_params(checkpoint.open(PARAMS))
    paths = parts_of(checkpoint.files)
    first: dict[str, Tensor] = {}
    for path in paths if len(paths) > 1 else ():
        for tensor in read_as("pytorch", checkpoint, [path]):
            if not isinstance(tensor, Tensor) or axis_of(tensor, len(paths), params) is not None:
                continue
            other = first.setdefault(tensor.name, tensor)
            if other is not tensor and not _same(checkpoint, other, tensor):
                message = f"every part has it, and that in {os.path.basename(path)} differs from the one in the first part"
                yield Finding(COPIES, "error", message, tensor=tensor.name, file=os.path.basename(path))


def _same(checkpoint: Checkpoint, one: Tensor, other: Tensor) -> bool:
    """Whether two vectors have the same bytes; those that are no plain runs are taken as equal where they are told alike."""
    left, right = _extent(one), _extent(other)
    if left is None or right is None:
        return (one.dtype, one.shape) == (other.dtype, other.shape)
    if left.nbytes != right.nbytes:
        return False
    for at in range(0, left.nbytes, _STEP):
        size = min(_STEP, left.nbytes - at)
        if checkpoint.open(left.file).read(left.offset + at, size) != checkpoint.open(right.file).read(right.offset + at, size):
            return False
    return True


def _extent(tensor: Tensor) -> Extent | None:
    value = tensor.value
    while isinstance(value, Node) and value.op == "reshape":
        value = value.inputs[0]
    return value if isinstance(value, Extent) else None
