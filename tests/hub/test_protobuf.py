"""The walk over protobuf messages: what the library wrote is found where it lies, and what is no message is refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from modelhub import IncompleteFile, InvalidFile, protobuf
from modelhub.files import File
from modelhub.plugins import time_limit
from modelhub.protobuf import Wire


def message(fields: int = 3, text: str = "x") -> bytes:
    """A real message of the library's own: a type with so many fields, each with a name and numbers."""
    made = descriptor_pb2.DescriptorProto(name="Model")
    for number in range(fields):
        made.field.add(name=f"{text}{number}", number=number + 1, label=1, type=5)
    return made.SerializeToString()


def names(wire: Wire) -> list[str]:
    """What `message` was given, read by the numbers of descriptor.proto: field = 2, name = 1."""
    found = []
    for number, kind, start, end in wire.fields():
        if number == 2 and kind == protobuf.BYTES:
            found += [wire.text(a, b) for inner, _, a, b in wire.fields(start, end) if inner == 1]
    return found


@pytest.mark.parametrize(("fields", "length"), [(3, 1), (5000, 5), (40, 5000), (3, 200_000)])
def test_what_the_library_wrote_is_found(tmp_path: Path, fields: int, length: int) -> None:
    data = message(fields, "ü" * length)
    (tmp_path / "m.pb").write_bytes(data)
    want = [f"{'ü' * length}{number}" for number in range(fields)]
    with File(str(tmp_path / "m.pb")) as file:
        assert names(Wire(file)) == want
    assert names(Wire(data)) == want


def test_numbers_of_every_size(tmp_path: Path) -> None:
    numbers = [0, 1, 127, 128, 300, 2**31 - 1, -1, -(2**31)]
    data = b"".join(descriptor_pb2.FieldDescriptorProto(number=number).SerializeToString() for number in numbers)
    assert [protobuf.signed(value) for _, _, value, _ in Wire(data).fields()] == numbers
    path = descriptor_pb2.SourceCodeInfo.Location(path=numbers[:6]).SerializeToString()
    ((number, kind, start, end),) = Wire(path).fields()
    assert (number, kind, Wire(path).varints(start, end, 6)) == (1, protobuf.BYTES, numbers[:6])
    with pytest.raises(InvalidFile, match="at most 5"):
        Wire(path).varints(start, end, 5)
    with pytest.raises(InvalidFile, match="a number at offset 1 runs out of its message"):
        Wire(b"\x01\xff\x80").varints(0, 3, 5)


@pytest.mark.parametrize("field", [b"\x08\x01", b"\x0a\x01x", b"\x0a\x05hello", b"\x0d1234", b"\x08\xff\xff\x01"])
def test_fields_end_anywhere_in_a_window(tmp_path: Path, field: bytes) -> None:
    """So many short fields that the ends of windows fall on every place of one."""
    count = 200_000 // len(field)
    for shift in range(len(field)):
        (tmp_path / "m.pb").write_bytes(b"\x12" + bytes([shift]) + bytes(shift) + field * count)
        with File(str(tmp_path / "m.pb")) as file, time_limit(10):
            assert sum(1 for number, *_ in Wire(file).fields() if number == 1) == count


def test_gigabytes_in_a_field_are_leapt_over(tmp_path: Path) -> None:
    """The field of 3 GB is a hole in a sparse file; reading it would take seconds, and 3 GB."""
    nbytes = 3 << 30
    length = b"".join(bytes([part]) for part in _varint(nbytes))
    with open(tmp_path / "big", "wb") as file:
        file.write(b"\x4a" + length)
        file.seek(nbytes, os.SEEK_CUR)
        file.write(message(2, "after"))
    with File(str(tmp_path / "big")) as opened:
        before = _read_so_far()
        assert names(Wire(opened)) == ["after0", "after1"]
        assert _read_so_far() - before < 200_000


def _varint(value: int) -> list[int]:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return [*parts, value]


def _read_so_far() -> int:
    with open("/proc/self/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"\x0a\x05abc", IncompleteFile, "ends at 7, the file at 5"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", InvalidFile, "ends at"),
        (b"\x0a" + b"\xff" * 11, InvalidFile, "longer than ten bytes"),
        (b"\x08", IncompleteFile, "the file at 1"),
        (b"\x08\xff", IncompleteFile, "the file at 2"),
        (b"\x0d\0\0", IncompleteFile, "the file at 3"),
        (b"\x00\x00", InvalidFile, "field number 0"),
        (b"\x0b\x0c", InvalidFile, "wire type 3"),
        (b"\x0f\x0c", InvalidFile, "wire type 7"),
    ],
)
def test_what_is_no_message_is_refused(tmp_path: Path, data: bytes, error: type[Exception], said: str) -> None:
    (tmp_path / "m.pb").write_bytes(data)
    with File(str(tmp_path / "m.pb")) as file, pytest.raises(error, match=said):
        list(Wire(file).fields())
    with pytest.raises(error, match=said):
        list(Wire(data).fields())


def test_a_message_inside_ends_where_its_field_does() -> None:
    wire = Wire(b"\x0a\x03\x0a\x05a" + b"\x08\x01" * 4)
    (_, _, start, end), *_ = wire.fields()
    with pytest.raises(InvalidFile, match="its message at 5"):
        list(wire.fields(start, end))


def test_depth_and_number_are_bounded() -> None:
    data = b""
    for _ in range(120):
        data = b"\x0a" + bytes(_varint(len(data))) + data

    def descend(wire: Wire, start: int, end: int) -> None:
        for _, _, a, b in wire.fields(start, end):
            descend(wire, a, b)

    with pytest.raises(InvalidFile, match="deeper than 100"):
        descend(Wire(data), 0, len(data))
    with pytest.raises(InvalidFile, match="more fields"):
        list(Wire(b"\x08\x01" * 50_000, max_fields=40_000).fields())


def test_a_text_is_text() -> None:
    with pytest.raises(InvalidFile, match="not UTF-8"):
        Wire(b"\xff\xfe").text(0, 2)
    with pytest.raises(InvalidFile, match="at most 1"):
        Wire(b"ab").text(0, 2, limit=1)


@given(st.binary(max_size=300))
def test_anything_at_all_ends_in_fields_or_in_words(data: bytes) -> None:
    try:
        found = list(Wire(data).fields())
    except (InvalidFile, IncompleteFile):
        return
    reached = 0
    for _, kind, start, end in found:
        if kind != protobuf.VARINT:
            assert reached < start <= end <= len(data)
            reached = end
