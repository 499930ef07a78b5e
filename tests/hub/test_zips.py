"""Zip archives: the members that ``zipfile`` sees, where their bytes lie, and archives written for it."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import FileProblem, InvalidFile, StoredZip, UnsupportedFile, ZipMember, zip_members
from modelhub.files import File
from modelhub.types import Patch, Placed, Tail

from tests.corpus.pytorch_bad import patched


def members(tmp_path: Path, data: bytes, **options: bool) -> dict[str, tuple[ZipMember, bytes]]:
    """Every member by name, with its data."""
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with File(str(path)) as file:
        return {member.name: (member, member.read(file)) for member in zip_members(file, **options)}


def zipped(files: dict[str, bytes], **options: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


FILES = {"a.npy": b"first" * 100, "b/c": b"", "täg\u2603": bytes(5000), "last": os.urandom(300)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_those_of_zipfile(tmp_path: Path, method: int) -> None:
    data = zipped(FILES, compression=method)
    found = members(tmp_path, data)
    assert {name: content for name, (_, content) in found.items()} == FILES
    for name, (member, content) in found.items():
        assert member.crc == zlib.crc32(FILES[name])
        assert member.size == len(content)
        if not member.deflated:
            assert data[member.offset : member.offset + member.nbytes] == content
            assert member.extent == (member.file, member.offset, member.nbytes)


def test_sizes_that_come_behind_the_data_and_zip64_fields(tmp_path: Path) -> None:
    class Stream(io.RawIOBase):
        """A pipe: ``zipfile`` cannot go back to complete its headers."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert {name: content for name, (_, content) in members(tmp_path, bytes(stream.data)).items()} == FILES
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("x", "w", force_zip64=True) as member:
        member.write(b"data")
    assert members(tmp_path, out.getvalue())["x"][1] == b"data"


def test_sixty_six_thousand_members(tmp_path: Path) -> None:
    assert len(members(tmp_path, zipped({str(i): b"" for i in range(66_000)}))) == 66_000


def test_names_that_differ_by_case_may_be_asked_for(tmp_path: Path) -> None:
    data = zipped({"W": b"1", "w": b"2"})
    with pytest.raises(InvalidFile, match="differ by case alone"):
        members(tmp_path, data)
    assert set(members(tmp_path, data, fold_case=False)) == {"W", "w"}


def corrupted(change: Callable[[bytes], bytes]) -> bytes:
    return change(zipped({"aa": b"data" * 10, "bb": b"more"}))


def end_record(at: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = data.rfind(b"PK\x05\x06") + at
        return data[:place] + value + data[place + len(value) :]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (end_record(4, b"\1\0"), "split over several disks"),
        (end_record(8, b"\1\0"), "split over several disks"),
        (end_record(8, b"\1\0\1\0"), "its 1 entries take"),
        (end_record(8, b"\7\0\7\0"), "a zip directory of 7 members"),
        (end_record(8, b"\3\0\3\0"), "a zip directory of 3 members|ends in the middle"),
        (end_record(12, b"\xff\xff\xff\x7f"), "zip directory of 2 members in 2147483647 bytes"),
        (end_record(16, b"\0\0\0\0"), "directory should end at"),
        (end_record(20, b"\5\0"), "0 bytes follow the zip, a comment of 5 is declared"),
        (lambda data: data[:-5], "no zip directory at the end"),
        (lambda data: b"", "no zip directory at the end"),
        (lambda data: patched(data, b"aa", False, 42, b"\x09\0\0\0"), "no local header at offset 9"),
        (lambda data: patched(data, b"aa", False, 34, b"\1\0"), "another disk"),
        (lambda data: patched(data, b"aa", False, 46, b"\0a"), "empty or holds a NUL"),
        (lambda data: patched(data, b"aa", False, 20, struct.pack("<I", 39)), "is stored, yet has 39 bytes for 40"),
        (lambda data: patched(data, b"aa", True, 14, b"\1\1\1\1"), "CRC and sizes are 01010101"),
        (lambda data: patched(data, b"aa", False, 20, b"\xff\xff\xff\xff"), "zip64 sizes are missing"),
        (lambda data: patched(data, b"aa", True, 18, b"\xff\xff\xff\xff"), "local zip64 sizes are missing"),
        (lambda data: patched(data, b"aa", True, 28, b"\xff\x7f"), "ends at|overlap"),
    ],
)
def test_what_two_readers_could_take_differently_is_rejected(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(InvalidFile, match=reason):
        members(tmp_path, corrupted(change))


def test_other_compressions_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFile, match="compression method 14"):
        members(tmp_path, zipped({"a": b"x" * 100}, compression=zipfile.ZIP_LZMA))


def test_a_member_that_inflates_to_more_than_it_declares_is_corrupt(tmp_path: Path) -> None:
    data = zipped({"a": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED)
    for local, at in ((True, 22), (False, 24)):
        data = patched(data, b"a", local, at, struct.pack("<I", 100))
    with pytest.raises(InvalidFile, match="does not inflate to the 100 bytes"):
        members(tmp_path, data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_damage_never_gives_a_member_outside_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(zipped({"aa": b"data" * 10, "bb": b"more" * 30}, compression=zipfile.ZIP_DEFLATED))
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(data)
    with File(str(path)) as file:
        try:
            found = zip_members(file)
        except FileProblem:
            return
    for member in found:
        assert 0 < member.offset <= member.offset + member.nbytes <= len(data)


# --- writing ------------------------------------------------------------------------------------------------------


def drive(zip_: StoredZip, parts: list[tuple[str, bytes, bytes]], size: Callable[[bytes], int] = len) -> bytes:
    """Write members as the engine does: (name, header, bytes of the Put). ``size`` may pretend that a Put was longer."""
    out = bytearray()
    late: list[Patch] = []
    for name, header, data in parts:
        out += zip_.start(name, header)
        placed = Placed(len(out), size(data), lambda data=data: zlib.crc32(data))  # type: ignore[misc]
        out += data
        late.append(zip_.finish(placed))
        zip_.offset = len(out)
    tail = zip_.directory()
    assert isinstance(tail, Tail)
    for patch in late:
        new = patch.data()
        out[patch.offset : patch.offset + len(new)] = new
    return bytes(out + tail.data())


def test_written_archives_are_sound_and_aligned(tmp_path: Path) -> None:
    zip_ = StoredZip()
    data = drive(zip_, [("w", b"", b"x" * 1000), ("täg", b"header" * 9, b"y" * 77), ("empty", b"", b"")])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("täg") == b"header" * 9 + b"y" * 77
    found = members(tmp_path, data)
    assert [member.offset % 64 for member, _ in found.values()] == [0, 0, 0]
    assert found["w"][1] == b"x" * 1000


def test_members_of_more_than_four_gigabytes_get_zip64_fields(tmp_path: Path) -> None:
    """Sparse: the file has a hole of 5 GiB where the data would be."""
    size = 5 << 30
    zip_ = StoredZip()
    start = zip_.start("huge")
    patch = zip_.finish(Placed(len(start), size, lambda: 0xABCD))
    after = zip_.add("after", b"small", align=64)
    path = tmp_path / "big.zip"
    with path.open("wb") as file:
        file.write(start)
        file.seek(len(start) + size)
        file.write(after)
        file.write(zip_.directory().data())
        file.seek(patch.offset)
        file.write(patch.data())
    with zipfile.ZipFile(path) as archive:
        assert [(info.filename, info.file_size) for info in archive.infolist()] == [("huge", size), ("after", 5)]
        assert archive.read("after") == b"small"
        with archive.open("huge") as member:
            assert member.read(10) == bytes(10)
    with File(str(path)) as opened:
        huge, small = zip_members(opened)
        assert (huge.size, huge.offset, huge.crc) == (size, len(start), 0xABCD)
        assert small.offset % 64 == 0
        assert small.read(opened) == b"small"


def test_a_checksum_is_asked_for_only_once_the_bytes_are_there() -> None:
    def busy() -> int:
        raise AssertionError("asked too early")

    zip_ = StoredZip()
    length = len(zip_.start("w"))
    zip_.finish(Placed(length, 8, busy))
    zip_.add("version", b"3")
    zip_.directory()


def test_members_are_finished_in_order() -> None:
    zip_ = StoredZip()
    zip_.start("a")
    with pytest.raises(ValueError, match="a member is open"):
        zip_.start("b")
    with pytest.raises(ValueError, match="still open"):
        zip_.directory()
    with pytest.raises(ValueError, match="finish"):
        zip_.finish(Placed(3, 1, lambda: 0))
