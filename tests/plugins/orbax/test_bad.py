"""Databases and arrays that nobody honest wrote: each is refused, soon and in little memory, in words."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import crc32c, plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor

MANIFEST, BTREE = 0x0CDB3A2A, 0x0CDB20DE
Entry = tuple[bytes, Any]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sealed(magic: int, body: bytes, compression: int = 0) -> bytes:
    data = magic.to_bytes(4, "big") + (12 + 2 + len(body) + 4).to_bytes(8, "little") + b"\0" + varint(compression) + body
    return data + crc32c(data).to_bytes(4, "little")


def files(*paths: bytes) -> bytes:
    lengths = b"".join(varint(len(path)) for path in paths)
    return varint(len(paths)) + bytes(max(0, len(paths) - 1)) + lengths + bytes(len(paths)) + b"".join(paths)


def manifest(path: bytes, offset: int, length: int, height: int = 0) -> bytes:
    config = bytes(16) + b"\0" + varint(1024) + varint(10**8) + b"\x04" + b"\0"
    version = b"\x01\x01" + bytes([height]) + b"\0" + varint(offset) + varint(length) + b"\0\0\0" + bytes(8)
    return sealed(MANIFEST, config + files(path) + version + b"\0")


def leaf(entries: list[tuple[bytes, bytes | tuple[int, int]]], path: bytes = b"d/0") -> bytes:
    """A value is inside the node, or (offset, length) in ``path``."""
    keys, values = [key for key, _ in entries], [value for _, value in entries]
    outside = [value for value in values if isinstance(value, tuple)]
    body = b"\0" + files(path) + varint(len(entries)) + bytes(len(entries) - 1)
    body += b"".join(varint(len(key)) for key in keys) + b"".join(keys)
    body += b"".join(varint(value[1] if isinstance(value, tuple) else len(value)) for value in values)
    body += bytes(isinstance(value, tuple) for value in values) + bytes(len(outside))
    body += b"".join(varint(value[0]) for value in outside) + b"".join(v for v in values if isinstance(v, bytes))
    return sealed(BTREE, body)


def inner(height: int, keys: list[bytes], at: list[tuple[int, int]], path: bytes = b"d/0") -> bytes:
    body = bytes([height]) + files(path) + varint(len(keys)) + bytes(len(keys) - 1)
    body += b"".join(varint(len(key)) for key in keys) + bytes(len(keys)) + b"".join(keys) + bytes(len(keys))
    body += b"".join(varint(offset) for offset, _ in at) + b"".join(varint(length) for _, length in at)
    return sealed(BTREE, body + bytes(3 * len(keys)))


def database(place: Path, root: bytes, *, before: bytes = b"", height: int = 0, path: bytes = b"d/0") -> Path:
    (place / "d").mkdir(parents=True)
    (place / "d" / "0").write_bytes(before + root)
    (place / "manifest.ocdbt").write_bytes(manifest(path, len(before), len(root), height))
    return place


def array(**said: Any) -> bytes:
    base = {
        "zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "compressor": None, "fill_value": None, "order": "C",
        "filters": None,
    }  # fmt: skip
    return json.dumps({**base, **said}).encode()


def refused(modelhub: Any, path: Path, *words: str) -> None:
    start = time.monotonic()
    shown = modelhub("show", path, "--json", status=None).json
    assert time.monotonic() - start < 10
    assert shown["format"] == "orbax", shown
    assert shown["state"] in ("invalid", "unsupported", "incomplete"), shown
    assert not shown["reason"].startswith("the plugin of"), shown["reason"]
    for word in words:
        assert word in shown["reason"], shown["reason"]


def test_the_encoder_of_these_tests_makes_honest_ones(tmp_path: Path, modelhub) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    node = leaf([(b"w/.zarray", array()), (b"w/0", (0, 16))])
    shown = modelhub("show", database(tmp_path / "x", node, before=data), "--tensors", "--json").json
    assert [(item["name"], item["shape"]) for item in shown["tensors"]] == [("w", [4])]


def test_trees_that_are_none(tmp_path: Path, modelhub) -> None:
    bottom = leaf([(b"a/.zarray", array()), (b"a/0", bytes(16))])
    doubled = inner(1, [b"a", b"b"], [(0, len(bottom))] * 2)
    refused(modelhub, database(tmp_path / "twice", doubled, before=bottom, height=1), "is there before")
    data, at = bottom, (0, len(bottom))
    for height in range(1, 61):  # each node twice in the one above: 2^60 ways
        node = inner(height, [b"a", b"b"], [at, at])
        data, at = data + node, (len(data), len(node))
    place = database(tmp_path / "bomb", b"", before=data, height=60)
    (place / "manifest.ocdbt").write_bytes(manifest(b"d/0", *at, 60))
    refused(modelhub, place, "is there before")
    length = len(inner(3, [b"a"], [(0, 70)]))
    refused(modelhub, database(tmp_path / "cycle", inner(3, [b"a"], [(0, length)]), height=3), "the tree is no tree")
    refused(modelhub, database(tmp_path / "order", leaf([(b"b/.zarray", array()), (b"a/0", b"")])), "out of order")


def test_lengths_that_lie(tmp_path: Path, modelhub) -> None:
    many = sealed(BTREE, b"\0" + files(b"d/0") + varint(1 << 40))
    refused(modelhub, database(tmp_path / "entries", many), "at most")
    paths = sealed(BTREE, b"\0" + varint((1 << 63) - 1))
    refused(modelhub, database(tmp_path / "files", paths), "at most")
    endless = sealed(BTREE, b"\0" + b"\xff" * 30)
    refused(modelhub, database(tmp_path / "varint", endless), "longer than ten bytes")
    place = database(tmp_path / "far", leaf([(b"w/.zarray", array()), (b"w/0", (1 << 62, 16))]))
    refused(modelhub, place)
    place = database(tmp_path / "root", leaf([(b"a", b"")]))
    (place / "manifest.ocdbt").write_bytes(manifest(b"d/0", 0, 1 << 60))
    refused(modelhub, place)
    good = leaf([(b"w/.zarray", array())])
    refused(modelhub, database(tmp_path / "sum", good[:20] + b"\x7f" + good[21:]), "checksum")
    refused(modelhub, database(tmp_path / "empty", b""))


def test_names_that_unfold(tmp_path: Path, modelhub) -> None:
    """Each begins with nearly all of the one before, and says how much of it."""
    count, length = 2000, 60_000
    keys = [b"a" * (length - 2) + number.to_bytes(2, "big") for number in range(count)]
    head = b"".join(varint(length - 2) for _ in keys[1:]) + b"".join(varint(2 if at else length) for at in range(count))
    text = b"".join(key[-2:] if at else key for at, key in enumerate(keys))
    node = sealed(BTREE, b"\0" + files(b"d/0") + varint(count) + head + text + b"\0" * count * 2)
    refused(modelhub, database(tmp_path / "keys", node), "no writer shares so much")
    names = varint(count) + head + bytes(count) + text
    refused(modelhub, database(tmp_path / "paths", sealed(BTREE, b"\0" + names + varint(1))), "no writer shares so much")


def test_paths_lead_nowhere_else(tmp_path: Path, modelhub) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    node = leaf([(b"w/.zarray", array()), (b"w/0", (0, 16))], path=b"../secret")
    refused(modelhub, database(tmp_path / "up", node), "is not there")
    node = leaf([(b"w/.zarray", array()), (b"w/0", (0, 16))], path=os.fsencode(secret))
    refused(modelhub, database(tmp_path / "absolute", node), "is not there")
    refused(modelhub, database(tmp_path / "root", leaf([(b"a", b"")]), path=b"d/../../secret"), "is not there")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"shape": [1 << 60], "chunks": [1 << 60]}, ("no checkpoint has such an array",)),
        ({"shape": [1 << 62, 1 << 62], "chunks": [1, 1]}, ("no checkpoint has such an array",)),
        ({"shape": [1 << 40], "chunks": [1]}, ("cut into", "chunks")),
        ({"shape": [1 << 40], "chunks": [1 << 40], "compressor": {"id": "zstd"}}, ("is not possible",)),
        ({"shape": [1 << 40], "chunks": [1 << 40], "compressor": {"id": "gzip"}}, ("is not possible",)),
        ({"shape": [-4]}, ("shape",)),
        ({"chunks": [0]}, ("chunks",)),
        ({"chunks": [2, 2]}, ("chunks of",)),
        ({"shape": "all"}, ("shape",)),
        ({"shape": [1] * 4000, "chunks": [1] * 4000}, ("shape",)),
        ({"shape": [5], "chunks": [5]}, ("20 bytes, 16 are stored",)),
        ({"zarr_format": 9}, ("zarr_format",)),
        ({"dimension_separator": "../"}, ("dimension_separator",)),
    ],
)
def test_arrays_that_lie(said: dict[str, Any], words: tuple[str, ...], tmp_path: Path, modelhub) -> None:
    refused(modelhub, database(tmp_path / "x", leaf([(b"w/.zarray", array(**said)), (b"w/0", bytes(16))])), *words)


def test_metadata_that_is_none(tmp_path: Path, modelhub) -> None:
    for number, text in enumerate([b"", b"[]", b"{", b"[" * 100_000, b'{"zarr_format": 2}', b"\xff\xfe"]):
        refused(modelhub, database(tmp_path / f"x{number}", leaf([(b"w/.zarray", text), (b"w/0", bytes(16))])))
    for number, text in enumerate(
        [b'{"tree_metadata": []}', b'{"tree_metadata": {"a": 1}}', b'{"tree_metadata": {"a": {}}}', b"{"]
    ):
        place = database(tmp_path / f"tree{number}", leaf([(b"w/.zarray", array()), (b"w/0", bytes(16))]))
        (place / "_METADATA").write_bytes(text)
        refused(modelhub, place)


def test_runs_that_unpack_to_more_than_they_say(tmp_path: Path, modelhub) -> None:
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(512 << 20))
    body = b"\0" + files(b"d/0") + varint(1)
    refused(modelhub, database(tmp_path / "node", sealed(BTREE, bomb, 1)), "unpack to more than")
    short = zstandard.ZstdCompressor().compress(body)
    refused(modelhub, database(tmp_path / "short", sealed(BTREE, short, 1)))
    whole, more = (zstandard.ZstdCompressor().compress(bytes(nbytes)) for nbytes in (16, 1 << 20))
    for name, chunk, words in (
        ("more", more, "more than the 16 bytes expected"),
        ("junk", whole + b"junk", "is broken near byte 16"),
    ):
        verified = modelhub("verify", compressed(tmp_path / name, chunk), "--level", "values", "--json", status=1).json[0]
        assert any(words in finding["message"] for finding in verified["findings"])


def compressed(place: Path, chunk: bytes) -> Path:
    """An array of 16 bytes, the Zstandard of which is ``chunk``."""
    said = array(compressor={"id": "zstd"})
    return database(place, leaf([(b"w/.zarray", said), (b"w/0", (0, len(chunk)))]), before=chunk)


def test_what_is_read_is_not_kept(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    place = compressed(tmp_path / "x", zstandard.ZstdCompressor().compress(bytes(16)))
    for tensor in inspect_path(str(place), plugins.get().formats).load_table().tensors:
        assert read_tensor(tensor).tobytes() == bytes(16)
    gc.collect()
    assert not [item for item in gc.get_objects() if type(item).__module__ == "modelhub_orbax.zstd"]


def test_what_zarr_may_also_say(tmp_path: Path, modelhub) -> None:
    """Big-endian, Fortran order, gzip, chunks over the edge, and chunks that are left out, against TensorStore."""
    tensorstore = pytest.importorskip("tensorstore")
    values = np.arange(35, dtype="f4").reshape(5, 7)
    kinds = {
        "big": {"dtype": ">f4", "compressor": None}, "fortran": {"order": "F", "compressor": {"id": "gzip", "level": 3}},
        "left_out": {"fill_value": 1.5, "compressor": {"id": "zlib", "level": 1}, "dimension_separator": "/"},
    }  # fmt: skip
    for name, metadata in kinds.items():
        said = {"dtype": "<f4", "chunks": [3, 4], "shape": [5, 7], **metadata}
        spec = {"driver": "zarr", "kvstore": f"file://{tmp_path}/x/{name}/", "metadata": said, "create": True}
        store = tensorstore.open(spec).result()
        if name == "left_out":
            store[:3, :4].write(values[:3, :4]).result()
        else:
            store.write(values).result()
    (tmp_path / "x" / "checkpoint").write_bytes(b"\x81\xa6target\x80")  # as T5X has it
    modelhub("convert", tmp_path / "x", "--to", "npz", "-o", tmp_path / "out.npz")
    filled = np.full((5, 7), 1.5, "f4")
    filled[:3, :4] = values[:3, :4]
    with np.load(tmp_path / "out.npz") as found:
        assert (found["big"] == values).all()
        assert (found["fortran"] == values).all()
        assert (found["left_out"] == filled).all()


def test_links_that_go_round(tmp_path: Path, modelhub) -> None:
    place = database(tmp_path / "x", leaf([(b"w/.zarray", array()), (b"w/0", bytes(16))]))
    for number in range(20):
        (place / "d" / f"again{number}").symlink_to(place, target_is_directory=True)
    start = time.monotonic()
    assert modelhub("show", place, "--json").json["state"] == "ready"
    assert time.monotonic() - start < 10
