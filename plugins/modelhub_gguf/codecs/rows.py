"""What every encoder asks of its rows before it starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def check_shape(dtype: str, block: int, columns: int) -> None:
    """ValueError where rows of so many ``columns`` are not whole blocks."""
    if columns % block or not columns:
        raise ValueError(f"rows of {columns} elements are not whole blocks of {block}, as {dtype} has them")


def rows_of(dtype: str, block: int, values: Floats) -> Floats:
    """``values`` as contiguous float32 (rows, columns). ValueError where they are not rows of whole blocks."""
    if values.ndim != 2:
        raise ValueError(f"{dtype} is encoded by rows: an array of {values.ndim} dimensions has none")
    check_shape(dtype, block, values.shape[1])
    return np.ascontiguousarray(values, np.float32)


def weights_of(importance: Floats, columns: int) -> Floats:
    """``importance`` as contiguous float32 (columns,). ValueError where it is not, or not finite."""
    weights = np.ascontiguousarray(importance, np.float32)
    if weights.shape != (columns,):
        raise ValueError(f"importance weights of shape {weights.shape} for rows of {columns} elements")
    finite = np.isfinite(weights)
    if not finite.all():
        raise ValueError(f"the importance weight of column {int(finite.argmin())} is not a finite number")
    return weights


def refuse_infinite(values: Floats) -> None:
    """ValueError, with the place, for the first NaN or infinity of ``values`` (rows, columns)."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(place) for place in np.unravel_index(finite.argmin(), finite.shape))
        raise ValueError(f"{name_of(values[row, column])} at row {row}, column {column}: it cannot be quantized")


def name_of(value: np.float32) -> str:
    """What people call a value that is no number."""
    return "NaN" if np.isnan(value) else "infinity" if value > 0 else "-infinity"
