"""A tensor's value as a run of granules: the smallest slices that can be read by themselves. Whoever copies, encodes or compares
a large tensor cuts it at their borders.

A granule of an extent is a block of its dtype; of an expression it is one row of the op on top, or of the op under a `reshape`
that only changes how rows are counted (a stack of matrices is then read matrix row by matrix row).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import TYPE_CHECKING

from modelhub import dtypes, ops
from modelhub.engine.values import Handles, Source, open_value
from modelhub.types import Node, Tensor, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Grid:
    """``count`` granules of ``elements`` elements in ``nbytes`` bytes each, of ``value``, of which each takes ``rows`` rows.
    ``seekable``: any of them can be read without those before it. ``tile``: see `modelhub.ops`, of the op on top."""

    value: Value
    elements: int
    nbytes: int
    count: int
    rows: int
    seekable: bool
    tile: int = 0

    def step(self, limit: int, unit: int) -> int:
        """Granules in a slice of about ``limit`` bytes whose elements are a multiple of ``unit``; at least the fewest such."""
        fewest = unit // gcd(self.elements, unit) if self.elements else 1
        return max(fewest, limit // max(1, self.nbytes) // fewest * fewest)


def grid_of(tensor: Tensor) -> Grid:
    """How a tensor that has a value and elements can be cut. Reads nothing."""
    value = tensor.value
    assert value is not None
    dtype = dtypes.get(tensor.dtype)
    total = prod(tensor.shape)
    if isinstance(value, Node):
        value = _peeled(value)
    seekable = _seekable(value)
    tile = ops.get(value.op).tile if isinstance(value, Node) else 0
    kind, shape = ops.spec(value)
    if kind == "U8" and len(shape) == 1:  # a run of bytes, whatever they mean
        return Grid(value, dtype.block, dtype.block_bytes, total // dtype.block, dtype.block_bytes, seekable, tile)
    count = shape[0] if shape else 1
    nbytes = dtype.nbytes(tensor.shape)
    if nbytes % count:  # packed flat, its rows do not end where bytes do: in one piece
        return Grid(value, total, nbytes, 1, count, seekable, tile)
    return Grid(value, total // count, nbytes // count, count, 1, seekable, tile)


def _peeled(value: Value) -> Value:
    """What stands under reshapes that leave the bytes and the dtype as they are, as long as that has no fewer rows."""
    while isinstance(value, Node) and value.op == "reshape":
        inner = value.inputs[0]
        if isinstance(inner, Node) and (
            inner.dtype != value.dtype or not inner.shape or (value.shape and inner.shape[0] < value.shape[0])
        ):
            break
        value = inner
    return value


def _seekable(value: Value) -> bool:
    return not isinstance(value, Node) or (ops.get(value.op).seekable and all(_seekable(item) for item in value.inputs))


class GridReader:
    """A grid open for reading, by one thread."""

    def __init__(self, grid: Grid, handles: Handles) -> None:
        self.grid = grid
        self._source: Source = open_value(grid.value, handles)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of granules ``start``..``stop``, contiguous."""
        import numpy as np

        rows = self._source.read(start * self.grid.rows, stop * self.grid.rows)
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
