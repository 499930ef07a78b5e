"""Snappy, for the blocks of an index that somebody compressed: decoded here, never encoded.

Facts: google/snappy ``format_description.txt``. TensorFlow itself has written no compressed blocks for years.
"""

from __future__ import annotations

MAX_BLOCK = 64 << 20
"""A block of an index takes no more than this when unpacked."""


def decode(data: bytes, limit: int = MAX_BLOCK) -> bytes:
    """The bytes that ``data`` stands for; ValueError says what is wrong with it."""
    length = shift = at = 0
    while True:
        if at >= len(data) or at > 4:
            raise ValueError("no length at its start")
        length |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            break
    if length > limit:
        raise ValueError(f"{length} bytes when unpacked, at most {limit} are read")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            count = tag >> 2
            if count >= 60:
                width = count - 59
                count = int.from_bytes(data[at : at + width], "little")
                at += width
            count += 1
            if at + count > len(data):
                raise ValueError(f"{count} literal bytes at {at}, it ends at {len(data)}")
            out += data[at : at + count]
            at += count
        else:
            width = (0, 1, 2, 4)[tag & 3]
            if at + width > len(data):
                raise ValueError(f"it ends inside of a copy at {at}")
            distance = int.from_bytes(data[at : at + width], "little")
            count = (tag >> 2) + 1
            if width == 1:
                distance |= (tag >> 5) << 8
                count = (tag >> 2 & 7) + 4
            at += width
            if not 0 < distance <= len(out):
                raise ValueError(f"a copy from {distance} bytes before, {len(out)} are there")
            piece = bytes(out[-distance:] if count >= distance else out[-distance : len(out) - distance + count])
            out += (piece * (count // len(piece) + 1))[:count]
        if len(out) > length:
            raise ValueError(f"more than the {length} bytes that it says it has")
    if len(out) != length:
        raise ValueError(f"{len(out)} bytes, it says that it has {length}")
    return bytes(out)
