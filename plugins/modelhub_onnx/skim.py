"""The short way through nodes and tensors that are written as nearly all are: one look at each field, no generators, no records.

What is not laid out like that (long attributes, typed or external data, a field that is new) is answered with None, and
`modelhub_onnx.graph` goes the long way. Both ways must come to the same; the tests hold them against each other.
"""

from __future__ import annotations

from collections.abc import Mapping

_OTHERS = frozenset((0x0A, 0x12, 0x1A, 0x32, 0x42, 0x4A))
"""Keys of a node's fields that are passed over: input, output, name, doc_string, overload, metadata_props."""


def node(buffer: bytes, at: int, end: int, plain: Mapping[bytes, int]) -> tuple[bytes, bytes, int] | None:
    """(operator, domain, small constants) of the ``NodeProto`` at ``at``..``end``. ``plain``: attributes that are known to hold
    nothing to list -> small constants in them."""
    operator = domain = b""
    constants = 0
    try:
        while at < end:
            key, length = buffer[at], buffer[at + 1]
            if length > 127:
                high = buffer[at + 2]
                if high > 127:
                    return None
                start = at + 3
                at = start + (length & 127 | high << 7)
            else:
                start = at + 2
                at = start + length
            if key in _OTHERS:
                continue
            if key == 0x22:
                operator = buffer[start:at]
            elif key == 0x2A:
                known = plain.get(buffer[start:at])
                if known is None:
                    return None
                constants += known
            elif key == 0x3A:
                domain = buffer[start:at]
            else:
                return None
    except IndexError:
        return None
    return (operator, domain, constants) if at == end and operator else None


def tensor(buffer: bytes, at: int, nbytes: int) -> tuple[list[int], int, bytes, int, int] | None:
    """(dims, data_type, name, place of raw_data, its bytes) of the ``TensorProto`` of ``nbytes`` bytes at ``at``, whose place
    counts from ``at``'s zero. raw_data comes last there, and need not lie in the buffer."""
    dims: list[int] = []
    data_type, name, end = 0, b"", at + nbytes
    try:
        while at < end:
            key = buffer[at]
            value, at = buffer[at + 1], at + 2
            if value > 127:
                shift, byte = 7, 128
                value &= 127
                while byte > 127:
                    byte = buffer[at]
                    at += 1
                    value |= (byte & 127) << shift
                    shift += 7
                    if shift > 63:
                        return None
            if key == 0x08:
                dims.append(value)
            elif key == 0x10 and not data_type:
                data_type = value
            elif key == 0x42 and not name:
                name = buffer[at : at + value]
                at += value
            elif key == 0x4A:
                return (dims, data_type, name, at, value) if at + value == end and name else None
            else:
                return None
    except IndexError:
        return None
    return None
