"""safetensors files that are wrong, each in one way, and honest ones that look odd. Bytes only: nothing here needs the library.

`BAD` maps a name to (the file's bytes, the state it must get, a text that its reason must hold).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any


def entry(dtype: str = "U8", shape: tuple[Any, ...] = (4,), start: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def build(header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of this header and data; ``length`` overrides the declared length of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _twice(first: bytes, second: bytes, data: bytes) -> bytes:
    return build(b"{" + first + b"," + second + b"}", data)


_A = b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
_B = b'"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}'

BAD: dict[str, tuple[bytes, str, str]] = {
    # 1, 2: the length of the header
    "length 2^64-1": (build(b"{}", length=(1 << 64) - 1), "invalid", "18446744073709551615"),
    "length over the limit": (build(b"{}", b" " * 64, length=100_000_001), "invalid", "100000000"),
    "length past the end": (build(b"{}", length=1000), "incomplete", "1000"),
    "length 0": (build(b"", b"{}", length=0), "invalid", "0 bytes"),
    "empty file": (b"", "incomplete", "0 bytes long"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "incomplete", "7 bytes long"),
    # 3: the data must be covered once
    "hole": (build({"a": entry(), "b": entry(start=8, end=12)}, bytes(12)), "invalid", "leaves a hole"),
    "hole at the start": (build({"a": entry(start=4, end=8)}, bytes(8)), "invalid", "leaves a hole after the header"),
    "overlap": (build({"a": entry(), "b": entry(start=2, end=6)}, bytes(6)), "invalid", "overlaps tensor 'a'"),
    "alias": (build({"a": entry(), "b": entry()}, bytes(4)), "invalid", "overlaps tensor 'a'"),
    # 4: names
    "duplicate name": (_twice(_A, _B, bytes(8)), "invalid", "'a' stands twice"),
    "duplicate name, the same entry": (_twice(_A, _A, bytes(4)), "invalid", "'a' stands twice"),
    "duplicate name, the first a number": (_twice(b'"a":1', _A, bytes(4)), "invalid", "'a' stands twice"),
    "duplicate name, spelled with an escape": (
        _twice(_A, _B.replace(b'"a"', b'"\\u0061"'), bytes(8)),
        "invalid",
        "'a' stands twice",
    ),
    "duplicate metadata": (_twice(b'"__metadata__":{}', b'"__metadata__":{}', b""), "invalid", "'__metadata__' stands twice"),
    "duplicate metadata key": (build(b'{"__metadata__":{"k":"1","k":"2"}}'), "invalid", "'k' stands twice"),
    "duplicate field": (
        build(_A.replace(b'"dtype"', b'"dtype":"I8","dtype"').join((b"{", b"}")), bytes(4)),
        "invalid",
        "'dtype' stands twice",
    ),
    # 5: the end
    "trailing byte": (build({"a": entry()}, bytes(5)), "invalid", "1 bytes belong to no tensor"),
    "data without tensors": (build({}, b"x"), "invalid", "belong to no tensor"),
    "truncated": (build({"a": entry()}, bytes(3)), "incomplete", "1 bytes are missing"),
    # 6, 7: shapes
    "dims overflow": (build({"a": entry(shape=(1 << 63, 2), end=0)}), "invalid", "overflow"),
    "dims overflow to the right size": (build({"a": entry(shape=(1 << 32, 1 << 32), end=0)}), "invalid", "overflow"),
    "dims overflow, no elements": (build({"a": entry(shape=(0, 1 << 63, 1 << 63), end=0)}), "invalid", "overflow"),
    "dims of a googol": (build({"a": entry(shape=(10**100,))}, bytes(4)), "invalid", "'a'"),
    "seventy dimensions": (build({"a": entry(shape=(1,) * 70, end=1)}, bytes(1)), "invalid", "70 dimensions"),
    "negative side": (build({"a": entry(shape=(-2, -2))}, bytes(4)), "invalid", "whole numbers"),
    "side 4.0": (build({"a": entry(shape=(4.0,))}, bytes(4)), "invalid", "'a'"),
    "side true": (build({"a": entry(shape=(True, 4))}, bytes(4)), "invalid", "whole numbers"),
    "side of text": (build({"a": entry(shape=("ab", 1 << 40))}, bytes(4)), "invalid", "'a'"),
    "offsets true": (build({"a": {**entry(end=1), "shape": [1], "data_offsets": [False, True]}}, bytes(1)), "invalid", "'a'"),
    "offsets backwards": (build({"a": entry(start=4, end=0)}, bytes(4)), "invalid", "before they start"),
    "offset negative": (build({"a": entry(start=-4, end=0)}, bytes(4)), "invalid", "whole numbers"),
    "three offsets": (build({"a": {**entry(), "data_offsets": [0, 4, 4]}}, bytes(4)), "invalid", "two data_offsets"),
    "size not the shape's": (build({"a": entry(shape=(5,))}, bytes(4)), "invalid", "takes 5 bytes"),
    "odd F4": (build({"a": entry("F4", (7,))}, bytes(4)), "invalid", "do not fill whole bytes"),
    "odd F6": (build({"a": entry("F6_E2M3", (5,))}, bytes(4)), "invalid", "do not fill whole bytes"),
    # 8: not a table
    "deep": (build(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "invalid", "not JSON"),
    "deep enough for one parser only": (build(b'{"\\u0061":' + b"[" * 1000 + b"]" * 1000 + b"}"), "invalid", "header"),
    "not JSON": (build(b"{]"), "invalid", "not JSON"),
    "not an object": (build(b"[1]"), "invalid", "'{' was expected"),
    "leading space": (build(b" {}"), "invalid", "'{' was expected"),
    "a NUL behind the JSON": (build(b"{}\0"), "invalid", "not JSON"),
    "lone surrogate": (build(b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"x"), "invalid", "not JSON"),
    "not UTF-8": (build(b'{"\xff":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"x"), "invalid", "not JSON"),
    "entry is a list": (build({"a": ["U8", [4], [0, 4]]}, bytes(4)), "invalid", "'a'"),
    "entry without a dtype": (build({"a": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "invalid", "'a'"),
    "dtype is a list": (build({"a": {**entry(), "dtype": ["U8"]}}, bytes(4)), "invalid", "'a'"),
    "shape is an object": (build({"a": {**entry(end=1), "shape": {}}}, bytes(1)), "invalid", "'a'"),
    "metadata is a list": (build({"__metadata__": ["pt"]}), "invalid", "__metadata__"),
    "metadata holds a number": (build({"__metadata__": {"epoch": 3}}), "invalid", "'epoch'"),
    "unknown dtype": (build({"a": entry("F3_E1M1")}, bytes(4)), "unsupported", "F3_E1M1"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "incomplete", "git lfs pull"),
    "a page of HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "invalid", "is a web page"),
}

GOOD: dict[str, tuple[bytes, list[str]]] = {
    # 9, 10, and what else is legal: (bytes, names in the order of their bytes)
    "path as a name": (build({"../../x": entry(), "/etc/passwd": entry(start=4, end=8)}, bytes(8)), ["../../x", "/etc/passwd"]),
    "zero-size tensor": (build({"e": entry("F32", (0, 3), 0, 0), "a": entry()}, bytes(4)), ["e", "a"]),
    "zero-size tensor in between": (
        build({"e": entry("F32", (0,), 4, 4), "b": entry(start=4, end=8), "a": entry()}, bytes(8)),
        ["a", "e", "b"],
    ),
    "nothing at all": (build({}), []),
    "only metadata": (build({"__metadata__": {"a": "b"}}), []),
    "metadata null": (build({"__metadata__": None, "a": entry()}, bytes(4)), ["a"]),
    "scalar": (build({"s": entry("F32", ())}, bytes(4)), ["s"]),
    "out of order": (build({"b": entry(start=4, end=8), "a": entry()}, bytes(8)), ["a", "b"]),
    "padded header": (build(json.dumps({"a": entry()}).encode() + b"  \n ", bytes(4)), ["a"]),
    "empty name": (build({"": entry()}, bytes(4)), [""]),
    "escapes in names": (
        build({'q"\\\n\t': entry(), "\u00e9\U0001f600": entry(start=4, end=8)}, bytes(8)),
        ['q"\\\n\t', "\u00e9\U0001f600"],
    ),
    "names that look like fields": (build({"dtype": entry(), "true": entry(start=4, end=8)}, bytes(8)), ["dtype", "true"]),
    "an unknown field": (build({"a": {**entry(), "note": "x"}}, bytes(4)), ["a"]),
    "a name of 100,000 letters": (build({"x" * 100_000: entry()}, bytes(4)), ["x" * 100_000]),
}
