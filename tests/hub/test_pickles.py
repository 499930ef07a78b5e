"""Pickles that are read and not run, against Python's own; and ones that are made to hurt whoever reads them."""

from __future__ import annotations

import collections
import contextlib
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import FileProblem, IncompleteFile, InvalidFile, UnsupportedFile, pickles
from modelhub.files import File

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from([3, 4, 5]))
@settings(deadline=None, max_examples=150)
def test_plain_values_are_what_python_makes_of_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    found = pickles.read(data)
    assert found.value == value
    assert found.end == len(data)
    assert found.names == ()


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int) -> None:
    value = {"a": [1, -1, 1 << 70, 2.5, True, None, "é", (1, 2, 3, 4)], "b": ()}
    assert pickles.read(pickle.dumps(value, protocol=protocol)).value == value


def test_classes_are_named_and_not_imported() -> None:
    value = collections.OrderedDict(a=1)
    found = pickles.read(pickle.dumps(value, protocol=4))
    assert [str(name) for name in found.names] == ["collections.OrderedDict"]
    assert isinstance(found.value, pickles.Call)
    assert found.value.items == [("a", 1)]
    gone = pickles.read(b"\x80\x02cno.such.module\nThing\n)R.")
    assert gone.value.function == ("no.such.module", "Thing")


def test_long_runs_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.pkl"
    path.write_bytes(pickle.dumps({"bytes": bytes(5 << 20), "text": "x" * (1 << 20)}, protocol=4))
    with File(str(path)) as file:
        found = pickles.read(file).value
        assert found["text"] == pickles.Run(found["text"].start, 1 << 20, True)
        assert file.read(found["bytes"].start, found["bytes"].nbytes) == bytes(5 << 20)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", IncompleteFile),
        (b"\x80\x04", IncompleteFile),
        (b"\x80\x04.", InvalidFile),
        (b"\x80\x04\x8e" + b"\xff" * 8, IncompleteFile),
        (b"\x80\x04\x8b\xff\xff\xff\x7f", InvalidFile),
        (b"\x80\x04h\x07.", InvalidFile),
        (b"\x80\x07N.", InvalidFile),
        (b"\x80\x04K\x01K\x02a.", InvalidFile),
        (b"\xffN.", InvalidFile),
        (b"I" + b"1" * 10_000, InvalidFile),
        (b"Ix\n.", InvalidFile),
    ],
)
def test_what_is_none_is_refused(data: bytes, problem: type[Exception]) -> None:
    with pytest.raises(problem):
        pickles.read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 200_000, b"]" * 200_000 + b".", b"N" + b"\x85" * 200_000 + b".", b"N" + b"2\x86" * 200_000 + b".",
        b"}" + b"N" + b"\x85" * 100_000 + b"Ns.", b"Nr\xff\xff\xff\x7f.",
    ],
    ids=range(6),
)  # fmt: skip
def test_bombs_are_bounded(data: bytes) -> None:
    start = time.monotonic()
    with contextlib.suppress(FileProblem):
        pickles.read(data)
    assert time.monotonic() - start < 30


def test_one_that_is_too_long_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    with pytest.raises(UnsupportedFile, match="more than 1000 opcodes"):
        pickles.read(b"N0" * 501 + b"N.")


def test_noise_is_refused() -> None:
    chance = random.Random(1)
    real = pickle.dumps({"a": [1, 2, {"b": collections.Counter("abc")}], "c": 2.5, "d": b"x" * 100}, protocol=4)
    for _ in range(4000):
        data = bytearray(real)
        for _ in range(chance.choice((1, 2, 6))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(FileProblem):  # and nothing else
            pickles.read(bytes(data))
