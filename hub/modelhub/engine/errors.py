"""How far an encoded tensor is from its source: sums that are taken chunk by chunk, in the pass that writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class ErrorSums:
    """Running sums over chunks of one tensor; chunks of several threads are added together."""

    count: int = 0
    squares: float = 0.0
    error_squares: float = 0.0
    dot: float = 0.0
    other_squares: float = 0.0
    maximum: float = 0.0
    overflow: int = 0

    def take(self, values: Any, other: Any, limit: float | None = None) -> None:
        """Add a chunk: ``values`` the source's elements, ``other`` what a reader of the output sees. Elements that are infinite
        or NaN on either side do not count, except as overflow where the source's was finite."""
        import numpy as np

        a, b = values.reshape(-1), other.reshape(-1)
        if a.dtype.kind == "c" or b.dtype.kind == "c":
            wide = np.complex128 if a.dtype.itemsize > 8 or b.dtype.itemsize > 8 else np.complex64
            a = np.ascontiguousarray(a, wide).view(np.float64 if wide is np.complex128 else np.float32)
            b = np.ascontiguousarray(b, wide).view(a.dtype)
        if self._take_finite(a, b, limit):
            return
        with np.errstate(all="ignore"):
            fine = np.isfinite(a) & np.isfinite(b)
            if limit is not None:
                self.overflow += int(
                    np.count_nonzero((np.abs(a) > limit) & np.isfinite(a) & (~np.isfinite(b) | (np.abs(b) >= limit)))
                )
            if not fine.all():
                a, b = a[fine], b[fine]
            difference = b.astype(np.float64) - a if a.dtype == np.float64 else b - a
            self.count += a.size
            if not a.size:
                return
            self.maximum = max(self.maximum, float(np.abs(difference).max()))
            self.squares += _squares(a)
            self.error_squares += _squares(difference)
            self.other_squares += _squares(b)
            self.dot += _dot(a, b)

    def _take_finite(self, a: Any, b: Any, limit: float | None) -> bool:
        """The same where nothing is infinite, NaN or near an overflow, as nearly always: the sums themselves tell."""
        import numpy as np

        if not a.size or a.dtype.kind != "f" or b.dtype.kind != "f":
            return False
        with np.errstate(all="ignore"):
            difference = b - a
            own, apart, along = (float(np.dot(*pair)) for pair in ((a, a), (difference, difference), (a, difference)))
            if apart <= own / 16:  # what b has follows from these, and more exactly, the nearer it is
                other, dot = own + 2 * along + apart, own + along
            else:
                other, dot = float(np.dot(b, b)), float(np.dot(a, b))
        if not all(map(math.isfinite, (own, apart, other, dot))) or (limit is not None and own >= limit * limit):
            return False
        self.count += a.size
        self.squares += own
        self.error_squares += apart
        self.other_squares += other
        self.dot += dot
        self.maximum = max(self.maximum, float(difference.max()), -float(difference.min()))
        return True

    @classmethod
    def of(cls, sums: Sequence[float]) -> ErrorSums:
        """From the six figures of `Codec.transcode`."""
        count, squares, error_squares, dot, other_squares, maximum = (float(figure) for figure in sums)
        return cls(int(count), squares, error_squares, dot, other_squares, maximum)

    def add(self, other: ErrorSums) -> None:
        self.count += other.count
        self.squares += other.squares
        self.error_squares += other.error_squares
        self.dot += other.dot
        self.other_squares += other.other_squares
        self.maximum = max(self.maximum, other.maximum)
        self.overflow += other.overflow

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.error_squares / self.count) if self.count else 0.0

    @property
    def relative(self) -> float:
        """Norm of the error over the norm of the source."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else (0.0 if not self.error_squares else math.inf)

    @property
    def snr(self) -> float | None:
        """Signal to noise in decibels; None where there is no error at all, or no signal."""
        return 10 * math.log10(self.squares / self.error_squares) if self.error_squares and self.squares else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two; None where either is all zeros."""
        norm = math.sqrt(self.squares) * math.sqrt(self.other_squares)
        return min(1.0, self.dot / norm) if norm else None

    def to_json(self) -> dict[str, Any]:
        """The figures as ``convert --json`` and ``diff --json`` print them."""
        figures = {
            "rmse": self.rmse,
            "relative_error": self.relative if math.isfinite(self.relative) else None,
            "max_error": self.maximum,
            "cosine": self.cosine,
            "snr": self.snr,
        }
        if self.overflow:
            figures["overflow"] = self.overflow
        return figures


def measure(values: Any, other: Any) -> dict[str, Any]:
    """How far the array ``other`` is from ``values``, of the same shape: ``rmse``, ``relative_error``, ``max_error``, ``cosine``
    and ``snr`` (decibels), as ``diff --json`` prints them. Infinities and NaN do not count."""
    sums = ErrorSums()
    sums.take(values, other)
    return sums.to_json()


def _squares(values: Any) -> float:
    flat = values.reshape(-1)
    return _dot(flat, flat)


def _dot(a: Any, b: Any) -> float:
    """Sum of products, finite for any finite float32: in double where a single could overflow."""
    import numpy as np

    with np.errstate(all="ignore"):
        total = float(np.dot(a, b))
        return total if math.isfinite(total) else float(np.dot(a.astype(np.float64), b.astype(np.float64)))
