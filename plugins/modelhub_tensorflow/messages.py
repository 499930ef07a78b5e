"""Fields of protobuf messages, as they are written."""

from __future__ import annotations

from modelhub_tensorflow import sorted_table


def number(field: int, value: int) -> bytes:
    """A field of one number; a zero is left out, as protobuf has it."""
    return sorted_table.as_varint(field << 3) + sorted_table.as_varint(value) if value else b""


def message(field: int, content: bytes) -> bytes:
    """A field of bytes, text, or a message of its own."""
    return sorted_table.as_varint(field << 3 | 2) + sorted_table.as_varint(len(content)) + content
