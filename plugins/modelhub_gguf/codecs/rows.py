"""What every encoder asks of its rows before it starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def checked(values: Floats, importance: Floats | None, block: int) -> tuple[Floats, Floats | None]:
    """``values`` (rows, columns) and ``importance`` (columns,) as contiguous float32, all of it finite. ValueError otherwise,
    and where a row is not whole blocks."""
    values = np.ascontiguousarray(values, np.float32)
    if values.ndim != 2 or values.shape[1] % block:
        raise ValueError(f"rows of {values.shape[-1:]} elements are not whole blocks of {block}")
    refuse_infinite(values)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if importance.shape != values.shape[1:]:
            raise ValueError(f"{importance.size} importance weights for rows of {values.shape[1]}")
        finite = np.isfinite(importance)
        if not finite.all():
            raise ValueError(f"the importance weight of column {int(finite.argmin())} is not a finite number")
    return values, importance


def refuse_infinite(values: Floats) -> None:
    """ValueError, with the place, for the first NaN or infinity of ``values`` (rows, columns)."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(place) for place in np.unravel_index(finite.argmin(), finite.shape))
        raise ValueError(f"{name_of(values[row, column])} at row {row}, column {column}: it cannot be quantized")


def name_of(value: np.float32) -> str:
    """What people call a value that is no number."""
    return "NaN" if np.isnan(value) else "infinity" if value > 0 else "-infinity"
