"""Detection on real files in real directories, with formats made for the purpose: who owns what, and what broken ones become."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from modelhub import Detection, Extent, Finding, Format, InvalidFile, Metadata, Rejected, Tensor, UnsupportedFile, ops, plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.errors import AmbiguousModel, ModelhubError, ModelNotFound
from modelhub.files import list_directory
from modelhub.found import Found
from safetensors.numpy import save_file


def by_suffix(suffix: str, confidence: int = 50):
    return lambda file: Detection([file.path], confidence) if file.name.endswith(suffix) else None


def nothing(checkpoint) -> Iterator[Tensor]:
    return iter(())


def fmt(name: str, **fields) -> Format:
    fields.setdefault("read", nothing)
    return Format(name=name, title=name.upper(), **fields)


def look(directory: Path, *formats: Format, **options) -> dict[str, Found]:
    result = inspect_listing(list_directory(str(directory)), formats, **options)
    return {os.path.relpath(found.path, directory): found for found in result.found}


def write(directory: Path, *names: str, data: bytes = b"x" * 100) -> None:
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_bytes(data)


def test_a_real_file_is_described_from_its_header(tmp_path: Path) -> None:
    save_file(
        {"w": np.ones((3, 4), np.float16), "b": np.ones(4, np.float32), "ids": np.arange(5)},
        tmp_path / "net.v2.safetensors",
        metadata={"format": "pt"},
    )
    write(tmp_path, "notes.txt")
    result = inspect_listing(list_directory(str(tmp_path)), plugins.get().formats)
    (found,) = result.found
    path = str(tmp_path / "net.v2.safetensors")
    assert (found.path, found.name, found.format, found.state, found.reason) == (path, "net.v2", "safetensors", "ready", "")
    assert (found.files, found.size, found.tensors, found.parameters) == ((path,), os.path.getsize(path), 3, 21)
    assert found.dtypes == {"F16": 12, "I64": 5, "F32": 4}
    assert found.precision == "mixed"
    assert found.modified_ns == os.stat(path).st_mtime_ns
    assert {tensor.name: tensor.shape for tensor in found.load_table().tensors} == {"w": (3, 4), "b": (4,), "ids": (5,)}
    assert [claim.format for claim in found.claims] == ["safetensors"]
    assert len(found.header_digest) == 32
    assert result.unknown == ["notes.txt"]


def test_content_before_suffix_and_all_claims_visible(tmp_path: Path) -> None:
    write(tmp_path, "a.bin", data=b"MAGIC" + b"\0" * 50)
    named = fmt("named", suffixes=(".bin",), detect=by_suffix(".bin", 20))
    magical = fmt("magical", magics=(b"MAGIC",), detect=lambda file: Detection([file.path], 95))
    refused = fmt("refused", suffixes=(".bin",), detect=lambda file: Rejected("no pickle inside", 40))
    found = look(tmp_path, named, magical, refused)["a.bin"]
    assert (found.format, found.state) == ("magical", "ready")
    assert [(claim.format, claim.confidence, claim.reason) for claim in found.claims] == [
        ("magical", 95, ""),
        ("refused", 40, "no pickle inside"),
        ("named", 20, ""),
    ]


def test_a_rejection_outranks_a_guess_but_not_an_equal_match(tmp_path: Path) -> None:
    write(tmp_path, "a.bin")
    refused = fmt("refused", suffixes=(".bin",), detect=lambda file: Rejected("broken", 60, "unsupported"))
    found = look(tmp_path, refused, fmt("weak", suffixes=(".bin",), detect=by_suffix(".bin", 20)))["a.bin"]
    assert (found.format, found.state, found.reason) == ("refused", "unsupported", "broken")
    found = look(tmp_path, refused, fmt("equal", suffixes=(".bin",), detect=by_suffix(".bin", 60)))["a.bin"]
    assert (found.format, found.state) == ("equal", "ready")


def test_equal_confidence_more_files_win_then_the_name(tmp_path: Path) -> None:
    write(tmp_path, "m.idx", "m.dat")
    group = fmt("zz-group", suffixes=(".idx",), detect=lambda file: Detection([file.path, file.path[:-3] + "dat"]))
    alone = fmt("alone", suffixes=(".idx",), detect=by_suffix(".idx"))
    found = look(tmp_path, alone, group)
    assert set(found) == {"m.idx"}
    assert found["m.idx"].format == "zz-group"
    assert len(found["m.idx"].files) == 2
    other = fmt("aardvark", suffixes=(".idx",), detect=by_suffix(".idx"))
    assert look(tmp_path, alone, other)["m.idx"].format == "aardvark"


def test_upper_case_suffixes_are_asked_about(tmp_path: Path) -> None:
    write(tmp_path, "A.BIN")
    assert set(look(tmp_path, fmt("any", suffixes=(".bin",), detect=lambda file: Detection([file.path])))) == {"A.BIN"}


def shards(file) -> Detection:
    stem = file.name.rsplit("-", 1)[0]
    present = sorted(name for name in file.siblings if name.startswith(stem))
    wanted = [f"{stem}-{number}.sh" for number in (1, 2, 3)]
    return Detection(present, missing=[name for name in wanted if name not in present], name=stem)


def test_a_group_has_one_owner_and_is_incomplete_until_all_of_it_is_there(tmp_path: Path) -> None:
    write(tmp_path, "m-1.sh", "m-2.sh", "m-3.sh", "n-2.sh", "n-3.sh", "z.txt")
    found = look(tmp_path, fmt("shards", suffixes=(".sh",), detect=shards))
    assert set(found) == {"m-1.sh", "n-2.sh"}
    assert (found["m-1.sh"].state, found["m-1.sh"].size, found["m-1.sh"].name) == ("ready", 300, "m")
    assert (found["n-2.sh"].state, found["n-2.sh"].reason, found["n-2.sh"].missing) == (
        "incomplete",
        "missing: n-1.sh",
        ("n-1.sh",),
    )


def test_a_named_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.pb")
    found = look(tmp_path, fmt("graph", suffixes=(".pb",), detect=lambda file: Detection([file.path, "variables/data"])))["a.pb"]
    assert (found.state, found.missing, len(found.files)) == ("incomplete", ("variables/data",), 1)


def test_a_directory_owns_the_files_it_names_and_others_stay_checkpoints(tmp_path: Path) -> None:
    model = tmp_path / "my.model"
    write(model, "config.json", "model.st", "model.bin", "notes.txt")
    whole = fmt(
        "dir",
        detect_directory=lambda listing: Detection(["model.st", "config.json"], 90) if "config.json" in listing else None,
        read=lambda checkpoint: iter([Metadata(values={"architecture": "llama"}, container="st")]),
    )
    parts = fmt("part", suffixes=(".st", ".bin"), detect=lambda file: Detection([file.path], 99))
    result = inspect_listing(list_directory(str(model)), [whole, parts])
    found = {os.path.basename(item.path): item for item in result.found}
    assert set(found) == {"my.model", "model.bin"}
    assert (found["my.model"].name, found["my.model"].architecture, found["my.model"].container) == ("my.model", "llama", "st")
    assert found["my.model"].files == (str(model / "model.st"), str(model / "config.json"))
    assert result.unknown == ["notes.txt"]


def test_a_broken_directory_is_invalid_with_what_nobody_else_owns(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model.bin")
    whole = fmt("dir", detect_directory=lambda listing: Rejected("config.json is not JSON", 80))
    result = inspect_listing(list_directory(str(tmp_path)), [whole, fmt("part", suffixes=(".bin",), detect=by_suffix(".bin"))])
    states = {os.path.basename(item.path): (item.state, item.reason) for item in result.found}
    assert states == {tmp_path.name: ("invalid", "config.json is not JSON"), "model.bin": ("ready", "")}
    assert result.unknown == []


def test_only_the_named_files_are_looked_at_but_their_group_is_whole(tmp_path: Path) -> None:
    write(tmp_path, "m-1.sh", "m-2.sh", "m-3.sh", "n-1.sh")
    found = look(tmp_path, fmt("shards", suffixes=(".sh",), detect=shards), only=["m-3.sh"])
    assert set(found) == {"m-1.sh"}
    assert len(found["m-1.sh"].files) == 3


@pytest.mark.parametrize("error", [ValueError("bad\nthing"), RecursionError(), MemoryError(), AssertionError()])
@pytest.mark.parametrize("where", ["detect", "read"])
def test_whatever_a_plugin_raises_is_that_files_trouble_only(tmp_path: Path, error: Exception, where: str) -> None:
    write(tmp_path, "a.bin", "b.ok")

    def fail(subject):
        raise error

    bad = fmt("bad", suffixes=(".bin",), detect=fail if where == "detect" else by_suffix(".bin"), read=fail)
    found = look(tmp_path, bad, fmt("ok", suffixes=(".ok",), detect=by_suffix(".ok")))
    assert found["b.ok"].state == "ready"
    assert (found["a.bin"].state, found["a.bin"].format) == ("invalid", "bad")
    assert "the plugin of bad" in found["a.bin"].reason
    assert "\n" not in found["a.bin"].reason
    assert [finding.check for finding in found["a.bin"].findings] == ["plugin"]


def test_a_failing_plugin_does_not_hide_anothers_match(tmp_path: Path) -> None:
    write(tmp_path, "a.bin")

    def fail(file):
        raise ValueError("oops")

    found = look(
        tmp_path, fmt("bad", suffixes=(".bin",), detect=fail), fmt("ok", suffixes=(".bin",), detect=by_suffix(".bin", 10))
    )
    assert (found["a.bin"].format, found["a.bin"].state) == ("ok", "ready")
    assert [(finding.check, finding.severity) for finding in found["a.bin"].findings] == [("plugin", "warning")]


def test_a_format_that_is_asked_about_everything_and_fails_claims_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")

    def fail(file):
        raise ValueError("oops")

    result = inspect_listing(list_directory(str(tmp_path)), [fmt("nosy", detect=fail)])
    assert (result.found, result.unknown) == ([], ["a.txt"])
    assert "the plugin of nosy failed: ValueError: oops" in result.problems[0].message


def test_an_unreadable_file_is_a_problem_and_not_a_verdict(tmp_path: Path) -> None:
    write(tmp_path, "gone.bin", "there.bin")
    listing = list_directory(str(tmp_path))
    (tmp_path / "gone.bin").unlink()
    peek = fmt("peek", suffixes=(".bin",), detect=lambda file: Detection([file.path]) if file.head else None)
    result = inspect_listing(listing, [peek])
    assert [os.path.basename(item.path) for item in result.found] == ["there.bin"]
    assert [problem.check for problem in result.problems] == ["read"]
    assert result.unknown == []


STATES = [
    (InvalidFile("tensor 'x' overlaps"), "invalid"),
    (UnsupportedFile("version 1"), "unsupported"),
]


@pytest.mark.parametrize(("error", "state"), STATES)
def test_file_problems_become_states(tmp_path: Path, error: Exception, state: str) -> None:
    write(tmp_path, "a.bin")

    def fail(checkpoint):
        yield Tensor("a", "U8", (1,), Extent(checkpoint.path, 0, 1))
        raise error

    found = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=fail))["a.bin"]
    assert (found.state, found.reason, found.tensors, found.findings) == (state, str(error), 0, ())


def at(offset: int, nbytes: int, name: str = "t", dtype: str = "U8", shape: tuple = (), **more) -> Tensor:
    return Tensor(name, dtype, shape or (nbytes,), Extent("FILE", offset, nbytes), **more)


BAD_TABLES = {
    "past the end": ([at(0, 50), at(50, 51, "u")], "incomplete", "tensor 'u' takes bytes 50 to 101 of a.bin, which ends at 100"),
    "far past the end": ([at(1 << 60, 8)], "incomplete", "which ends at 100"),
    "negative offset": ([at(-8, 8)], "invalid", "8 bytes at offset -8 make no sense"),
    "bytes and shape differ": (
        [at(0, 12, dtype="F32", shape=(4,))],
        "invalid",
        "F32 [4] takes 16 bytes, 12 are declared at offset 0",
    ),
    "negative dimensions": ([at(0, 6, shape=(-2, -3))], "invalid", "makes no sense"),
    "huge dimensions": ([at(0, 0, shape=(1 << 40, 1 << 40))], "invalid", "more elements than can be counted"),
    "huge dimensions times zero": ([at(0, 0, shape=(1 << 40, 1 << 40, 0))], "invalid", "more elements than can be counted"),
    "too many dimensions": ([at(0, 1, shape=(1,) * 65)], "invalid", "makes no sense"),
    "one name twice": ([at(0, 1), at(1, 1)], "invalid", "two tensors are called 't'"),
    "a float in a shape": ([at(0, 2), at(2, 2, "u", shape=(2.0,))], "invalid", "expected a tuple of whole numbers"),
    "a list as a shape": ([at(0, 2, shape=[2])], "invalid", "expected a tuple of whole numbers"),
    "an unknown dtype": ([at(0, 2, dtype="Q9")], "invalid", "the dtype 'Q9' is not registered"),
    "another file": ([Tensor("t", "U8", (1,), Extent("/etc/passwd", 0, 1))], "invalid", "not one of the checkpoint's files"),
    "no value and no reason": ([Tensor("t", "U8", (1,), None)], "invalid", "neither a value nor a word on why"),
    "odd sub-byte count": ([at(0, 2, dtype="F4", shape=(3,))], "invalid", "does not divide"),
    "no record": (["tensor"], "invalid", "yielded a str, expected Tensor"),
    "metadata that is not JSON": ([Metadata(values={"a": object()})], "invalid", "not plain JSON"),
    "an expression past the end": (
        [Tensor("t", "U8", (8,), ops.inflate(Extent("FILE", 90, 20), nbytes=8))],
        "incomplete",
        "takes bytes 90 to 110",
    ),
    "an expression that repeats what is stored for years": (
        [Tensor("t", "U8", (1 << 40,), ops.strided(Extent("FILE", 0, 1), "U8", [1 << 40], [0]))],
        "invalid",
        "its tensors take 1,099,511,627,776 bytes, 100 are stored",
    ),
    "an expression of another size": (
        [Tensor("t", "F32", (8,), ops.inflate(Extent("FILE", 0, 20), nbytes=8))],
        "invalid",
        "F32 [8] takes 32 bytes, its op inflate gives 8",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_what_a_reader_yields_is_checked_like_input(tmp_path: Path, case: str) -> None:
    records, state, reason = BAD_TABLES[case]
    write(tmp_path, "a.bin")

    def relocate(value):
        if isinstance(value, Extent):
            return value._replace(file=value.file.replace("FILE", str(tmp_path / "a.bin")))
        return replace(value, inputs=tuple(map(relocate, value.inputs))) if value is not None else None

    records = [item._replace(value=relocate(item.value)) if isinstance(item, Tensor) else item for item in records]
    found = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=lambda checkpoint: records))["a.bin"]
    assert found.state == state
    assert reason in found.reason


def test_metadata_that_no_json_holds_are_kept_as_text(tmp_path: Path) -> None:
    write(tmp_path, "a.bin")
    values = {"\ud800": ["a\udc00", 1 << 64, -(1 << 63)], "n": 10**30, "huge": 1 << 9999}
    records = [Metadata(values=values)]
    found = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=lambda checkpoint: records))["a.bin"]
    assert found.state == "ready"
    assert found.metadata == {
        "\\ud800": ["a\\udc00", str(1 << 64), -(1 << 63)],
        "n": str(10**30),
        "huge": "a number of 10000 bits",
    }
    for _ in range(300):
        values = {"deep": values}
    records = [Metadata(values=values)]
    found = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=lambda checkpoint: records))["a.bin"]
    assert (found.state, found.reason, found.findings) == ("invalid", "what it says of itself nests more than 100 deep", ())


def test_sums_count_ties_once_and_logical_tensors_only(tmp_path: Path) -> None:
    write(tmp_path, "a.bin")
    path = str(tmp_path / "a.bin")
    records = [
        Tensor("packed", "U8", (8,), Extent(path, 0, 8), view="stored"),
        Tensor("packed", "BF16", (4,), Extent(path, 0, 8), view="logical"),
        Tensor("w", "F32", (2, 5), Extent(path, 8, 40)),
        Tensor("tied", "F32", (2, 5), Extent(path, 8, 40)),
        Tensor("sparse", "F32", (3,), None, unsupported="sparse COO tensor"),
        Finding("structure", "warning", "odd"),
    ]
    found = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=lambda checkpoint: records))["a.bin"]
    assert (found.state, found.tensors, found.parameters, found.dtypes) == ("ready", 4, 17, {"F32": 13, "BF16": 4})
    assert [finding.message for finding in found.findings] == ["odd"]
    assert found.load_table().tensors == tuple(records[:5])


def test_a_format_without_a_reader_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.bin")
    heavy = fmt("heavy", suffixes=(".bin",), detect=by_suffix(".bin"), read=None, unavailable={"read": "pip install x"})
    found = look(tmp_path, heavy)["a.bin"]
    assert (found.state, found.reason) == ("unsupported", "HEAVY is known but cannot be read: pip install x")


def test_a_claim_outside_its_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "sub/a.bin", "secret")
    for outside in ("../secret", "/etc/passwd", "x/../../secret"):
        bad = fmt("bad", suffixes=(".bin",), detect=lambda file, outside=outside: Detection([file.path, outside]))
        found = look(tmp_path / "sub", bad)["a.bin"]
        assert found.state == "invalid"
        assert "outside" in found.reason


def test_a_path_is_a_file_or_a_directory_that_is_one_or_holds_one(tmp_path: Path) -> None:
    formats = [
        fmt("part", suffixes=(".st",), detect=by_suffix(".st")),
        fmt("dir", detect_directory=lambda listing: Detection(["a.st", "config.json"]) if "config.json" in listing else None),
    ]
    write(tmp_path, "one/a.st", "two/a.st", "two/b.st", "whole/a.st", "whole/config.json", "none/readme.txt")
    assert inspect_path(str(tmp_path / "one"), formats).path == str(tmp_path / "one/a.st")
    assert inspect_path(str(tmp_path / "two/b.st"), formats).format == "part"
    assert inspect_path(str(tmp_path / "whole"), formats).format == "dir"
    assert inspect_path(str(tmp_path / "whole/a.st"), formats).format == "part"
    with pytest.raises(AmbiguousModel, match="holds 2 checkpoints"):
        inspect_path(str(tmp_path / "two"), formats)
    for missing in ("none", "none/readme.txt", "nowhere"):
        with pytest.raises(ModelNotFound):
            inspect_path(str(tmp_path / missing), formats)
    os.mkfifo(tmp_path / "pipe.st")
    with pytest.raises(ModelhubError, match="neither a regular file"):
        inspect_path(str(tmp_path / "pipe.st"), formats)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\n\xf0\x9f\x99\x82.bin"
    Path(os.fsdecode(name)).write_bytes(b"1234")
    read = lambda checkpoint: [Tensor("t", "U8", (4,), Extent(checkpoint.path, 0, 4))]  # noqa: E731
    (found,) = look(tmp_path, fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"), read=read)).values()
    assert os.fsencode(found.path) == name
    assert (found.state, found.load_table().tensors[0].value.file) == ("ready", os.fsdecode(name))


def test_new_content_has_a_new_header_digest(tmp_path: Path) -> None:
    format_ = fmt("f", suffixes=(".bin",), detect=by_suffix(".bin"))
    digests = set()
    for data in (b"a" * 100_000, b"a" * 100_001, b"b" + b"a" * 99_999, b"a" * 99_999 + b"b"):
        write(tmp_path, "a.bin", data=data)
        digests.add(look(tmp_path, format_)["a.bin"].header_digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("data", "state", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "incomplete", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<title>Sign in</title>" + bytes(3000), "invalid", "a web page: its download"),
        (b"<xml>", "invalid", "the magic is wrong"),
    ],
)
def test_what_came_in_place_of_a_model_is_said(data: bytes, state: str, says: str, tmp_path: Path) -> None:
    """Whether a format turns it down at once or when it reads it."""

    def read(checkpoint) -> Iterator[Tensor]:
        raise InvalidFile("the magic is wrong")

    write(tmp_path, "a.one", "b.two", data=data)
    late = fmt("late", suffixes=(".one",), detect=by_suffix(".one"), read=read)
    early = fmt("early", suffixes=(".two",), detect=lambda file: Rejected("the magic is wrong"))
    found = look(tmp_path, late, early)
    assert {name: item.state for name, item in found.items()} == {"a.one": state, "b.two": state}
    assert all(re.search(says, item.reason) for item in found.values())
