"""What a pickle names behind the point where `modelhub_pytorch.pickle_vm` gave up on it.

A program that is less strict reads on, and would call what comes then. Only the shapes of opcodes count here, not what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelhub_pytorch.allow import Report

_FIXED = {
    **dict.fromkeys(b"0(12NQRaebdloust}])\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x94\x97\x98", 0),
    0x80: 1,
    0x4B: 1,
    0x68: 1,
    0x71: 1,
    0x4D: 2,
    0x4A: 4,
    0x6A: 4,
    0x72: 4,
    0x47: 8,
    0x95: 8,
    0x82: 1,
    0x83: 2,
    0x84: 4,
}
"""Opcodes -> bytes of their argument."""
_LINES = dict.fromkeys(b"FILSVPgp", 1)
_SIZED = {0x58: 4, 0x8C: 1, 0x8D: 8, 0x55: 1, 0x54: 4, 0x43: 1, 0x42: 4, 0x8E: 8, 0x96: 8, 0x8A: 1, 0x8B: 4}
"""Opcodes -> bytes of the length of their argument."""
_TEXTS = (0x58, 0x8C, 0x8D)
_LINE = 4096


def names_behind(data: bytes, pos: int, limit: int, resolve: Callable[[str, str], Any], report: Report) -> None:
    """Hand every global that the opcodes from ``pos`` on name to ``resolve``, as far as they can be told apart."""
    texts: list[str] = []
    end = min(len(data), pos + limit)
    while pos < end:
        op = data[pos]
        pos += 1
        if op in _FIXED:
            pos += _FIXED[op]
            if op in (0x82, 0x83, 0x84):
                report.note("an extension code names a global of the reader's own registry")
        elif op in _SIZED:
            width = _SIZED[op]
            length = int.from_bytes(data[pos : pos + width], "little")
            pos += width
            if op in _TEXTS and length <= _LINE:
                texts = [*texts[-1:], data[pos : pos + length].decode("utf-8", "replace")]
            pos += length
        elif op in _LINES:
            pos = data.find(b"\n", pos, pos + _LINE) + 1
            if not pos:
                return
        elif op in (0x63, 0x69):  # GLOBAL, INST
            middle = data.find(b"\n", pos, pos + _LINE)
            stop = data.find(b"\n", middle + 1, middle + 1 + _LINE)
            if middle < 0 or stop < 0:
                return
            resolve(data[pos:middle].decode("utf-8", "replace"), data[middle + 1 : stop].decode("utf-8", "replace"))
            pos = stop + 1
        elif op == 0x93:  # STACK_GLOBAL: of the two latest texts, or of others that only the stack knows
            if len(texts) == 2:
                resolve(*texts)
            else:
                report.note("a global is named by texts that cannot be told (STACK_GLOBAL)")
        elif op != 0x2E or data[pos : pos + 1] != b"\x80":  # STOP, and no other pickle behind it; or no opcode at all
            return
