"""Measures what an encoding would cost, on a sample of a tensor's rows: for recipes that choose by measured error."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.codecs import codec_of
from modelhub.engine.cast import read_floats
from modelhub.engine.errors import ErrorSums
from modelhub.engine.grid import GridReader, grid_of
from modelhub.engine.values import Handles
from modelhub.errors import ConversionError, ModelhubError
from modelhub.types import Tensor, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE = 1 << 18
"""Elements of a tensor that are looked at, in rows spread evenly over it."""
SPOTS = 16
"""Places in the tensor that the sample is taken from."""


class Probing:
    """A `modelhub.declared.Probe`. The samples of the tensor that was asked about last are kept, for several dtypes are tried on
    each."""

    def __init__(self) -> None:
        self._handles = Handles()
        self._last: tuple[str, Value | None] | None = None
        self._rows: list[tuple[int, NDArray[np.float32]]] = []

    def __call__(self, tensor: Tensor, dtype: str, importance: Value | None = None) -> ErrorSums:
        """The error sums of a sample of ``tensor``'s rows encoded as ``dtype``; squares are weighted by ``importance``."""
        sums = ErrorSums()
        encoder, decoder = codec_of(dtype, "encode"), codec_of(dtype, "decode")
        assert encoder.encode is not None
        if encoder.prepare:
            encoder.prepare("encode" if importance is None else "weigh")
        columns = tensor.shape[-1] if tensor.shape else 1
        weights = None if importance is None else read_floats(importance, self._handles).reshape(-1, columns)
        for row, values in self._sample(tensor):
            one = None
            if weights is not None:
                rows = max(1, tensor_rows(tensor) // len(weights))
                one = weights[min(row // rows, len(weights) - 1)]
            try:
                blocks = encoder.encode(values, one) if dtypes.get(dtype).rowwise else encoder.encode(values.reshape(-1))
            except ValueError as error:
                raise ConversionError(f"tensor {tensor.name} cannot be encoded as {dtype}: {error}") from error
            back = decoder.decode(blocks.reshape(-1), values.size).reshape(values.shape)
            if one is None:
                sums.take(values, back, encoder.maximum)
            else:
                _take_weighted(sums, values, back, one)
        return sums

    def _sample(self, tensor: Tensor) -> list[tuple[int, NDArray[np.float32]]]:
        """(number of the first row, rows as float32), from places spread over the tensor."""
        import numpy as np

        key = (tensor.name, tensor.value)
        if self._last == key:
            return self._rows
        grid, dtype, columns = grid_of(tensor), dtypes.get(tensor.dtype), tensor.shape[-1] if tensor.shape else 1
        decoder = codec_of(tensor.dtype, "decode")
        unit = grid.step(0, columns)
        reader = GridReader(grid, self._handles)
        units = grid.count // unit
        if not grid.seekable or units < 1:
            raise ModelhubError(f"tensor {tensor.name} cannot be sampled: it can only be read in order")
        each = max(1, SAMPLE // SPOTS // (unit * grid.elements))
        spots = max(1, min(SPOTS, units // each, -(-SAMPLE // (each * unit * grid.elements))))
        found = []
        for number in range(spots):
            first = (units - each) * number // max(1, spots - 1) if spots > 1 else 0
            data = reader.read(first * unit, min(grid.count, (max(0, first) + each) * unit))
            values = decoder.decode(data, len(data) // dtype.block_bytes * dtype.block)
            found.append((first * unit * grid.elements // columns, np.ascontiguousarray(values, np.float32).reshape(-1, columns)))
        self._last, self._rows = key, found
        return found

    def __enter__(self) -> Probing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handles.close()


def tensor_rows(tensor: Tensor) -> int:
    """How many rows a tensor has, its last dimension being a row."""
    from math import prod

    return prod(tensor.shape[:-1])


def _take_weighted(sums: ErrorSums, values: Any, back: Any, weights: Any) -> None:
    import numpy as np

    difference = back.astype(np.float64) - values
    sums.count += values.size
    sums.squares += float((values.astype(np.float64) ** 2 * weights).sum())
    sums.error_squares += float((difference**2 * weights).sum())
    sums.other_squares += float((back.astype(np.float64) ** 2 * weights).sum())
    sums.dot += float((values.astype(np.float64) * back * weights).sum())
    sums.maximum = max(sums.maximum, float(np.abs(difference).max(initial=0.0)))
