"""CRC-32C (Castagnoli), the checksum of containers that Python's standard library does not know: by NumPy, or by the
``google_crc32c`` library where that is installed.

Long runs are cut into lanes that step forward together, four bytes at a time; the lanes' checksums are then put together as
zlib's ``crc32_combine`` does it: what stands behind a run multiplies its checksum by a power of x, which is a table look-up once
the power is known.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

POLYNOMIAL = 0x82F63B78
"""RFC 3720, B.4, bits reversed."""
_LANE, _LANES = 1 << 10, 1 << 12
"""Bytes of a lane, and how many step together: four megabytes at a time."""
_SHORT = 1 << 12


def crc32c(data: Buffer, value: int = 0) -> int:
    """The CRC-32C of ``data`` behind what came to ``value``, as ``zlib.crc32`` does for the other polynomial."""
    view = memoryview(data).cast("B")
    library = _library()
    if library is not None:
        return int(library.extend(value, bytes(view)))
    state = ~value & 0xFFFFFFFF
    at, step = 0, _LANE * _LANES
    while len(view) - at >= _SHORT:
        run = min(step, (len(view) - at) // _LANE * _LANE)
        lanes = 1 << (run // _LANE).bit_length() - 1
        run = lanes * _LANE
        state = _shift(state, run) ^ _together(view[at : at + run], lanes)
        at += run
    table = _table()
    for byte in view[at:]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return ~state & 0xFFFFFFFF


@cache
def _library() -> Any:
    try:
        import google_crc32c  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    return google_crc32c if google_crc32c.implementation == "c" else None


@cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


@cache
def _halves(nbytes: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What ``nbytes`` zero bytes (a power of two) make of the lower and the upper halves of all states."""
    import numpy as np

    low, high = np.arange(1 << 16, dtype=np.uint32), np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    if nbytes == 1:
        table = np.array(_table(), np.uint32)
        return table[low & 0xFF] ^ (low >> np.uint32(8)), table[high & 0xFF] ^ (high >> np.uint32(8))
    half = _halves(nbytes // 2)
    return _apply(half, _apply(half, low)), _apply(half, _apply(half, high))


def _apply(halves: tuple[NDArray[np.uint32], NDArray[np.uint32]], state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    found: NDArray[np.uint32] = halves[0][state & 0xFFFF] ^ halves[1][state >> 16]
    return found


def _shift(state: int, nbytes: int) -> int:
    """What ``nbytes`` (a power of two) zero bytes make of ``state``."""
    low, high = _halves(nbytes)
    return int(low[state & 0xFFFF] ^ high[state >> 16])


def _together(view: memoryview, lanes: int) -> int:
    """The state after ``lanes`` lanes of bytes, from zero."""
    import numpy as np

    words = np.frombuffer(view, "<u4").reshape(lanes, -1)
    low, high = _halves(4)
    state, part = np.zeros(lanes, np.uint32), np.empty(lanes, np.uint32)
    upper, lower = np.empty(lanes, np.intp), np.empty(lanes, np.intp)  # what np.take wants: it would convert all others
    for column in range(words.shape[1]):
        np.bitwise_xor(state, words[:, column], out=state)
        np.right_shift(state, 16, out=upper)
        np.bitwise_and(state, 0xFFFF, out=lower)
        np.take(low, lower, out=state, mode="clip")
        np.take(high, upper, out=part, mode="clip")
        np.bitwise_xor(state, part, out=state)
    length = words.shape[1] * 4
    while len(state) > 1:
        state = _apply(_halves(length), state[0::2]) ^ state[1::2]
        length *= 2
    return int(state[0])
