"""The reader of FlatBuffers: what the library wrote is found where it lies, and what is no buffer is refused in words."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers as library
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelhub import IncompleteFile, InvalidFile
from modelhub.files import File
from modelhub.flatbuffers import FlatBuffer, Table
from modelhub.plugins import time_limit

NAME, COUNT, SIDES, CHILDREN, BYTES, TEXTS, RATIO, PAIR, ABSENT = range(9)


def made(children: int = 3, payload: int = 10, identifier: bytes = b"TEST", text: str = "ü") -> bytes:
    """A real buffer of the library's own: a table with every kind of field, and tables in it."""
    builder = library.Builder(64)
    inner = []
    for number in range(children):
        name = builder.CreateString(f"{text}{number}")
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(NAME, name, 0)
        builder.PrependInt32Slot(COUNT, number, 0)
        inner.append(builder.EndObject())
    tables = vector(builder, 4, inner, builder.PrependUOffsetTRelative)
    sides = vector(builder, 4, [1, -1, 224], builder.PrependInt32)
    payload_at = builder.CreateByteVector(bytes(range(256)) * (payload // 256) + bytes(range(payload % 256)))
    texts = vector(builder, 4, [builder.CreateString(one) for one in ("a", "", "ccc")], builder.PrependUOffsetTRelative)
    name = builder.CreateString("root")
    builder.StartObject(9)
    builder.PrependUOffsetTRelativeSlot(NAME, name, 0)
    builder.PrependUint64Slot(COUNT, 2**63, 0)
    builder.PrependUOffsetTRelativeSlot(SIDES, sides, 0)
    builder.PrependUOffsetTRelativeSlot(CHILDREN, tables, 0)
    builder.PrependUOffsetTRelativeSlot(BYTES, payload_at, 0)
    builder.PrependUOffsetTRelativeSlot(TEXTS, texts, 0)
    builder.PrependFloat32Slot(RATIO, 0.5, 0.0)
    builder.Prep(4, 8)
    builder.PrependInt32(7)
    builder.PrependInt32(8)
    builder.PrependStructSlot(PAIR, builder.Offset(), 0)
    builder.Finish(builder.EndObject(), file_identifier=identifier)
    return bytes(builder.Output())


def vector(builder: Any, size: int, items: list[int], put: Callable[[int], None]) -> int:
    builder.StartVector(size, len(items), size)
    for item in reversed(items):
        put(item)
    return int(builder.EndVector())


def everything(buffer: FlatBuffer) -> dict[str, Any]:
    """What `made` was given."""
    root = buffer.root()
    place = root.place(BYTES)
    return {
        "name": root.text(NAME),
        "count": root.number(COUNT, "Q"),
        "sides": root.numbers(SIDES, "i"),
        "children": [(child.text(NAME), child.number(COUNT, "i", 0)) for child in root.tables(CHILDREN)],
        "bytes": place and place[1],
        "texts": list(root.texts(TEXTS)),
        "ratio": root.number(RATIO, "f"),
        "pair": root.struct(PAIR, 8),
        "absent": (ABSENT in root, root.text(ABSENT, "-"), root.number(ABSENT, "i", 5), root.table(ABSENT), root.place(99)),
    }


@pytest.mark.parametrize(("children", "payload"), [(3, 10), (0, 0), (20_000, 300), (3, 3 << 20)])
def test_what_the_library_wrote_is_found(tmp_path: Path, children: int, payload: int) -> None:
    data = made(children, payload)
    want = {
        "name": "root",
        "count": 2**63,
        "sides": (1, -1, 224),
        "children": [(f"ü{number}", number) for number in range(children)],
        "bytes": payload,
        "texts": ["a", "", "ccc"],
        "ratio": 0.5,
        "pair": struct.pack("<ii", 8, 7),
        "absent": (False, "-", 5, None, None),
    }
    assert everything(FlatBuffer(data)) == want
    (tmp_path / "m.bin").write_bytes(b"\xff" * 5 + data + b"after")
    with File(str(tmp_path / "m.bin")) as file:
        buffer = FlatBuffer(file, start=5, end=5 + len(data))
        assert buffer.identifier == b"TEST"
        assert everything(buffer) == want
        start, count = buffer.root().place(BYTES) or (0, 0)
        stands = (tmp_path / "m.bin").read_bytes()[start : start + count]
        assert stands == bytes(range(256)) * (payload // 256) + bytes(range(payload % 256))


def test_gigabytes_are_not_read(tmp_path: Path) -> None:
    """A payload that is a hole in a sparse file: reading it would take seconds, and 3 GB."""
    data = bytearray(made(3, 1 << 20))
    start, _ = FlatBuffer(bytes(data)).root().place(BYTES) or (0, 0)
    with open(tmp_path / "big", "wb") as file:
        file.write(data)
        file.seek(start - 4)
        file.write(struct.pack("<I", 3 << 30))
        file.truncate(start + (3 << 30) + 100)
    with File(str(tmp_path / "big")) as opened:
        before = _read_so_far()
        assert everything(FlatBuffer(opened))["bytes"] == 3 << 30
        assert _read_so_far() - before < 300_000


def _read_so_far() -> int:
    with open("/proc/self/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])


def table(*fields: int, at: int = 24, vtable: int = 8, size: int = 20) -> bytes:
    """A buffer by hand: the root's offset, an identifier, a vtable at 8, a table at ``at`` with five numbers."""
    head = (
        struct.pack("<I4s", at, b"TEST")
        + struct.pack("<HH", 4 + 2 * len(fields), size)
        + struct.pack(f"<{len(fields)}H", *fields)
    )
    return head.ljust(at, b"\0") + struct.pack("<i4I", at - vtable, 12, 0xFFFFFFF0, 3, 0x41414141)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", IncompleteFile, "the root table: 4 bytes at offset 0"),
        (b"\0\0\0\0TEST", InvalidFile, "points at itself"),
        (b"\xff\xff\xff\xffTEST", IncompleteFile, "the root table"),
        (table(4)[:26], IncompleteFile, "a table"),
        (table(4, vtable=-4), InvalidFile, "would begin at -4"),
        (table(4, vtable=400), IncompleteFile, "a vtable"),
        (table(4, vtable=40), InvalidFile, "no vtable"),
        (table(3), InvalidFile, "outside of its table"),
        (table(400), InvalidFile, "outside of its table"),
        (table(4, size=2), InvalidFile, "no vtable"),
        (table(4, size=4000), IncompleteFile, "4000 bytes at offset 24"),
    ],
)
def test_what_is_no_buffer_is_refused(tmp_path: Path, data: bytes, error: type[Exception], said: str) -> None:
    (tmp_path / "m").write_bytes(data)
    with File(str(tmp_path / "m")) as file, pytest.raises(error, match=said):
        FlatBuffer(file).root().number(0, "i")
    with pytest.raises(error, match=said):
        FlatBuffer(data).root().number(0, "i")


def test_a_field_that_is_not_there_takes_no_room() -> None:
    """The smallest table that there is has a default for every field, however long."""
    root = FlatBuffer(table(0, 0, size=4)).root()
    assert (root.number(1, "Q", 7), root.struct(0, 64), root.text(0)) == (7, None, "")


def test_a_vtable_before_the_buffer_is_none() -> None:
    data = b"\x04\0\x08\0" + table(4, vtable=-4)
    with pytest.raises(InvalidFile, match="would begin at 0"):
        FlatBuffer(data[:28] + struct.pack("<i", 28) + data[32:], start=4).root()


@pytest.mark.parametrize(
    "take",
    [
        lambda root: root.number(4, "d"),  # eight bytes where the table has four left
        lambda root: root.text(1),  # an offset of 4 GB
        lambda root: root.table(1),
        lambda root: root.place(0),  # a length of 0x41414141
        lambda root: root.numbers(0, "q"),
        lambda root: list(root.tables(0)),
        lambda root: root.text(0),
        lambda root: root.data(0),
    ],
)
def test_offsets_and_lengths_are_held_against_the_buffer(take: Callable[[Table], Any]) -> None:
    root = FlatBuffer(table(4, 8, 12, 0, 16)).root()
    with time_limit(5), pytest.raises((InvalidFile, IncompleteFile)):
        take(root)


def test_the_same_places_a_million_times() -> None:
    """Offsets that all point at one text, or one table: what a small file makes a reader do has a bound."""
    count = 1_500_000
    text = struct.pack("<I", 1 << 10) + b"x" * (1 << 10)
    vtable = struct.pack("<HHH", 6, 8, 4)
    head = struct.pack("<I4s", 16, b"TEST") + vtable + b"\0\0" + struct.pack("<iI", 8, 4)
    vector_at = len(head)
    offsets = b"".join(struct.pack("<I", vector_at + 4 + 4 * count - (vector_at + 4 + 4 * number)) for number in range(count))
    root = FlatBuffer(head + struct.pack("<I", count) + offsets + text).root()
    with time_limit(30), pytest.raises(InvalidFile, match="more tables and texts"):
        sum(1 for _ in root.texts(0))
    tables = FlatBuffer(head + struct.pack("<I", count) + offsets + struct.pack("<i", 4 * count + 20) + bytes(8)).root()
    with time_limit(30), pytest.raises(InvalidFile, match="more tables and texts"):
        sum(1 for _ in tables.tables(0))


def test_depth_is_bounded() -> None:
    """A chain of tables, each the only field of the one before."""
    data = struct.pack("<I4s", 16, b"TEST") + struct.pack("<HHHH", 6, 8, 4, 0)
    for number in range(200):
        at = 16 + 8 * number
        data += struct.pack("<iI", at - 8, 4)

    def descend(child: Table | None) -> None:
        while child:
            child = child.table(0)

    with pytest.raises(InvalidFile, match="deeper than 64"):
        descend(FlatBuffer(data + bytes(8)).root())


def test_a_text_is_text() -> None:
    data = made(text="x").replace(b"root", b"\xff\xfeoo")
    with pytest.raises(InvalidFile, match="not UTF-8"):
        FlatBuffer(data).root().text(NAME)
    with pytest.raises(InvalidFile, match="at most 2"):
        FlatBuffer(made()).root().text(NAME, limit=2)
    with pytest.raises(InvalidFile, match="at most 2"):
        FlatBuffer(made()).root().numbers(SIDES, "i", most=2)


WHOLE = made(2, 10)


@given(st.binary(max_size=200))
@example(bytes(200))
def test_anything_at_all_ends_in_fields_or_in_words(data: bytes) -> None:
    try:
        everything(FlatBuffer(data))
    except (InvalidFile, IncompleteFile):
        return


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, len(WHOLE))
)
def test_damage_ends_in_fields_or_in_words(damage: list[tuple[int, int]], length: int) -> None:
    data = bytearray(WHOLE)
    for at, byte in damage:
        data[at] = byte
    for part in (bytes(data), bytes(data[:length])):
        try:
            with time_limit(5):
                everything(FlatBuffer(part))
        except (InvalidFile, IncompleteFile):
            continue


def test_a_file_that_becomes_shorter_says_so(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(made(3, 1 << 20))
    with File(str(tmp_path / "m")) as file:
        buffer = FlatBuffer(file)
        os.truncate(tmp_path / "m", 100)
        with pytest.raises(IncompleteFile, match="truncated"):
            everything(buffer)
