"""Writes the pickle of a state dict, opcode by opcode: what ``torch.load(weights_only=True)`` reads as an ``OrderedDict`` of
tensors.

Protocol 2, like ``torch.save``. Only what a state dict needs: text, numbers, tuples, dicts, and the calls that rebuild tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_BATCH = 1000
"""Items set at once, as CPython's pickler has it."""


class Entry(NamedTuple):
    """One tensor: elements 0 to the end of the storage ``key``, C order. ``storage``: torch's class for it; ``dtype``: torch's
    name where the storage is untyped, else "". ``numel`` counts what the storage class counts: elements, or bytes."""

    name: str
    key: str
    storage: str
    dtype: str
    numel: int
    shape: tuple[int, ...]


def state_dict(entries: Sequence[Entry], attributes: Mapping[str, Mapping[str, str]]) -> bytes:
    """The pickle. ``attributes`` become the ``_metadata`` that torch's own state dicts carry, if there are any."""
    out = _Emitter()
    out.ordered_dict()
    for start in range(0, len(entries), _BATCH):
        out.put(b"(")
        for entry in entries[start : start + _BATCH]:
            out.text(entry.name)
            out.tensor(entry)
        out.put(b"u")
    if attributes:
        out.put(b"}")
        out.shared("_metadata")
        out.ordered_dict()
        for name, texts in attributes.items():
            out.text(name)
            out.put(b"}(")
            for key, text in texts.items():
                out.text(key)
                out.text(text)
            out.put(b"us")
        out.put(b"sb")
    return b"\x80\x02" + b"".join(out.parts) + b"."


class _Emitter:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._memo: dict[bytes, bytes] = {}

    def put(self, data: bytes) -> None:
        self.parts.append(data)

    def _once(self, code: bytes) -> None:
        """Emit ``code`` and remember its value; the next time only fetch it."""
        known = self._memo.get(code)
        if known is None:
            number = len(self._memo)
            wide = number > 0xFF
            self._memo[code] = b"j" + struct.pack("<I", number) if wide else b"h" + bytes([number])
            known = code + (b"r" + struct.pack("<I", number) if wide else b"q" + bytes([number]))
        self.parts.append(known)

    def name(self, module: str, name: str) -> None:
        self._once(f"c{module}\n{name}\n".encode())

    def text(self, text: str) -> None:
        self.parts.append(_text(text))

    def shared(self, text: str) -> None:
        self._once(_text(text))

    def number(self, number: int) -> None:
        if number < 1 << 8:
            self.put(b"K" + bytes([number]))
        elif number < 1 << 16:
            self.put(b"M" + struct.pack("<H", number))
        elif number < 1 << 31:
            self.put(b"J" + struct.pack("<i", number))
        else:
            data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
            self.put(b"\x8a" + bytes([len(data)]) + data)

    def numbers(self, numbers: Sequence[int]) -> None:
        """A tuple of numbers."""
        if len(numbers) > 3:
            self.put(b"(")
        for number in numbers:
            self.number(number)
        self.put((b")", b"\x85", b"\x86", b"\x87")[len(numbers)] if len(numbers) <= 3 else b"t")

    def ordered_dict(self) -> None:
        self.name("collections", "OrderedDict")
        self.put(b")R")

    def tensor(self, entry: Entry) -> None:
        """``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``, or v3 with a dtype where the storage is
        untyped."""
        self.name("torch._utils", "_rebuild_tensor_v3" if entry.dtype else "_rebuild_tensor_v2")
        self.put(b"((")
        self.shared("storage")
        self.name("torch.storage" if entry.dtype else "torch", entry.storage)
        self.text(entry.key)
        self.shared("cpu")
        self.number(entry.numel)
        self.put(b"tQK\x00")
        self.numbers(entry.shape)
        self.numbers(_contiguous(entry.shape))
        self.put(b"\x89")
        self.ordered_dict()
        if entry.dtype:
            self.name("torch", entry.dtype)
        self.put(b"tR")


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _contiguous(shape: Sequence[int]) -> list[int]:
    """C-order strides in elements, as torch computes them: an empty dimension counts as one."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]
