"""LZF, h5py's own compression: literal runs, and copies of what was written up to 8 KiB before.

Facts: h5py ``lzf/lzf/lzf_d.c`` and ``lzf/lzf_filter.c`` (filter 32000). It is decompressed in Python, some megabytes a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import InvalidFile, Op

FILTER = 32000
MAX_CHUNK = 64 << 20
"""Bytes of a chunk that is held in memory."""


def decompressed(data: bytes, nbytes: int) -> bytes:
    """The ``nbytes`` bytes that ``data`` stands for. `InvalidFile` where it stands for something else."""
    out = bytearray()
    at, end = 0, len(data)
    try:
        while at < end:
            code = data[at]
            at += 1
            if code < 32:
                if at + code + 1 > end:
                    raise IndexError
                out += data[at : at + code + 1]
                at += code + 1
            else:
                length, back = code >> 5, (code & 31) << 8
                if length == 7:
                    length += data[at]
                    at += 1
                back += data[at] + 1
                at += 1
                length += 2
                start = len(out) - back
                if start < 0:
                    raise InvalidFile(f"an LZF chunk refers to byte {start} before its start")
                piece = out[start : start + length]
                if len(piece) < length:  # it overlaps what it makes
                    piece = (piece * (length // len(piece) + 1))[:length]
                out += piece
            if len(out) > nbytes:
                break
    except IndexError:
        raise InvalidFile(f"an LZF chunk ends in the middle, after {len(out)} bytes of {nbytes}") from None
    if len(out) != nbytes:
        raise InvalidFile(f"an LZF chunk gives {len(out)} bytes or more, {nbytes} were expected")
    return bytes(out)


def _infer(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    nbytes = args["nbytes"]
    if len(inputs) != 1 or inputs[0][0] != "U8" or type(nbytes) is not int or not 0 <= nbytes <= MAX_CHUNK:
        raise ValueError(f"hdf5.lzf: {nbytes} bytes of {inputs}")
    return "U8", (nbytes,)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    state = sources[0].state
    if "lzf" not in state:
        data = sources[0].read(0, sources[0].shape[0]).tobytes()
        state["lzf"] = np.frombuffer(decompressed(data, args["nbytes"]), np.uint8)
    return state["lzf"][start:stop]


def _memory(inputs: Sequence[tuple[str, tuple[int, ...]]], args: Mapping[str, Any], rows: int) -> int:
    return 2 * int(args["nbytes"]) + inputs[0][1][0]


OPS = (Op(name="hdf5.lzf", rows=_rows, infer=_infer, memory=_memory),)
