"""What is noted beside a group or a dataset of an HDF5 file: attributes that are a text, or a list of texts."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from modelhub import InvalidFile

from modelhub_keras import types
from modelhub_keras.container import ATTRIBUTE, MAX_TEXT, Container, Cursor, Message

MAX_PARTS = 100_000


class Attribute(NamedTuple):
    """An attribute as it stands: its type, its shape, its bytes."""

    kind: types.Kind
    shape: tuple[int, ...] | None
    data: bytes


def has(file: Container, address: int, *names: str) -> bool:
    """Whether any of these attributes stands beside the object at ``address``."""
    wanted = {name.encode() for name in names}
    return any(_name(file, message)[0] in wanted for message in _all(file, address))


def text(file: Container, address: int, name: str) -> str | list[str] | None:
    """An attribute's text or texts, None where it is neither or not there. Keras splits long lists into NAME0, NAME1, ...
    (``saving/legacy/legacy_h5_format.py``, ``save_attributes_to_hdf5_group``)."""
    known = {_name(file, message)[0]: message for message in _all(file, address)}
    if name.encode() in known:
        return _value(file, known[name.encode()])
    whole: list[str] = []
    for number in range(MAX_PARTS):
        message = known.get(f"{name}{number}".encode())
        part = _value(file, message) if message else None
        if not isinstance(part, list):
            break
        whole += part
    return whole or None


def _all(file: Container, address: int) -> Iterator[Message]:
    return (message for message in file.messages(address) if message.type == ATTRIBUTE)


def _name(file: Container, message: Message) -> tuple[bytes, Cursor, tuple[int, int], int, int]:
    """(name, what follows it, sizes of type and shape, flags, padding) of an attribute message (IV.A.2.m)."""
    data = Cursor(message.data, f"{file.name}: an attribute")
    version, flags = data.number(1), data.number(1)
    if version not in (1, 2, 3):
        raise InvalidFile(f"{data.what} of version {version}")
    length, kind, space = data.number(2), data.number(2), data.number(2)
    data.take(1 if version == 3 else 0)
    pad = 8 if version == 1 else 1
    name = data.take(_padded(length, pad)).split(b"\0")[0]
    return name, data, (kind, space), flags if version > 1 else 0, pad


def _padded(length: int, pad: int) -> int:
    return -(-length // pad) * pad


def _value(file: Container, message: Message) -> str | list[str] | None:
    _, data, (kind_size, space_size), flags, pad = _name(file, message)
    if flags & 3:  # a type that stands elsewhere: no text's does
        return None
    kind = types.parse(Cursor(data.take(_padded(kind_size, pad))[:kind_size], data.what))
    shape = types.shape(Cursor(data.take(_padded(space_size, pad))[:space_size], data.what), file)
    if shape is None or len(shape) > 1:
        return None
    count = prod(shape)
    if kind.texts == "" and count:
        return None
    if kind.size * count > MAX_TEXT:
        raise InvalidFile(f"{data.what} of {count} texts of {kind.size} bytes")
    body = Cursor(data.take(kind.size * count), data.what)
    found = [_text(file, kind, body) for _ in range(count)]
    return found if shape else found[0]


def _text(file: Container, kind: types.Kind, body: Cursor) -> str:
    if kind.texts == "fixed":
        return body.take(kind.size).split(b"\0")[0].decode("utf-8", "replace")
    length, address, number = body.number(4), body.number(file.offsets), body.number(4)
    if not length or address in (0, file.undefined):
        return ""
    return heap_object(file, address, number)[:length].decode("utf-8", "replace")


def heap_object(file: Container, address: int, wanted: int) -> bytes:
    """An object of a global heap (III.E)."""
    what = f"{file.name}: the global heap at {address}"
    head = Cursor(file.at(address, 8 + file.lengths, "a global heap"), what)
    if head.take(4) != b"GCOL":
        raise InvalidFile(f"{what} is none")
    head.take(4)
    size = head.number(file.lengths)
    if size > MAX_TEXT:
        raise InvalidFile(f"{what} has {size} bytes")
    at, end, width = address + head.at, address + size, 8 + file.lengths
    while at + width <= end:
        entry = Cursor(file.at(at, width, "a global heap"), what)
        number = entry.number(2)
        entry.take(6)
        nbytes = entry.number(file.lengths)
        if number == wanted:
            if nbytes > end - at - width:
                raise InvalidFile(f"{what}: object {wanted} has {nbytes} bytes")
            return file.at(at + width, nbytes, "a text")
        if number == 0:
            break
        at += width + _padded(nbytes, 8)
    raise InvalidFile(f"{what} has no object {wanted}")
