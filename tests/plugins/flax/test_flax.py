"""Flax checkpoints: written with the msgpack library in the layout that ``flax.serialization`` publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from modelhub.testing import FormatConformance
from safetensors.numpy import load_file

CHUNK = 64
"""Bytes from which on arrays are cut, in place of flax's gigabyte."""


def packed(array: Any) -> bytes:
    array = np.asarray(array)
    return msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)


def prepared(tree: Any, cut: bool) -> Any:
    if isinstance(tree, dict):
        return {key: prepared(value, cut) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        if cut and tree.nbytes > CHUNK:
            flat, step = tree.reshape(-1), CHUNK // tree.itemsize
            chunks = [flat[at : at + step] for at in range(0, len(flat), step)]
            return {
                "__msgpack_chunked_array__": True,
                "shape": {str(number): side for number, side in enumerate(tree.shape)},
                "chunks": {str(number): prepared(chunk, False) for number, chunk in enumerate(chunks)},
            }
        return msgpack.ExtType(1, packed(tree))
    if isinstance(tree, np.generic):
        return msgpack.ExtType(3, packed(tree))
    return tree


def to_bytes(tree: Any, cut: bool = False) -> bytes:
    return msgpack.packb(prepared(tree, cut), use_bin_type=True)


class TestFlax(FormatConformance):
    format = "flax"

    def write(self, path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        path.write_bytes(to_bytes(tensors))


TREE = {
    "params": {
        "dense": {"kernel": np.arange(60, dtype=np.float32).reshape(5, 12), "bias": np.ones(12, np.float16)},
        "layers": {str(number): {"scale": np.full((3,), number, np.int32)} for number in range(20)},
    },
    "step": 17,
    "rate": np.float32(0.5),
    "name": "tiny",
}


@pytest.mark.parametrize("cut", [False, True])
def test_a_tree_of_arrays(cut: bool, tmp_path: Path, modelhub) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(TREE, cut))
    shown = modelhub("show", tmp_path / "flax_model.msgpack", "--json").json
    assert (shown["format"], shown["state"], shown["metadata"]["values"]) == ("flax", "ready", {"step": 17, "name": "tiny"})
    modelhub("convert", tmp_path / "flax_model.msgpack", "--to", "safetensors", "-o", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert len(found) == 23
    np.testing.assert_array_equal(found["params/dense/kernel"], TREE["params"]["dense"]["kernel"])
    np.testing.assert_array_equal(found["params/layers/7/scale"], [7, 7, 7])
    assert found["rate"] == np.float32(0.5)


@pytest.mark.parametrize("name", ["state.msgpack", "checkpoint_100"])
def test_what_an_optimizer_keeps_is_no_part_of_the_model(name: str, tmp_path: Path, modelhub) -> None:
    """A ``TrainState`` as ``flax.training.checkpoints`` saves it; it gives its files no suffix."""
    slots = {"0": {"count": np.int32(3), "mu": TREE["params"], "nu": TREE["params"]}, "1": {}}
    (tmp_path / name).write_bytes(to_bytes({"step": 7, "params": TREE["params"], "opt_state": slots}))
    modelhub("scan", tmp_path)
    (row,) = modelhub("ls", "--json").json
    assert (row["format"], row["parameters"]) == ("flax", 60 + 12 + 60)
    assert modelhub("show", tmp_path / name, "--json").json["metadata"]["optimizer_tensors"] == 2 * 22 + 1
    modelhub("convert", tmp_path / name, "--to", "safetensors", "-o", tmp_path / "out.safetensors")
    assert all(key.startswith("params/") for key in load_file(tmp_path / "out.safetensors"))
    (tmp_path / name).write_bytes(to_bytes({"opt_state": slots}))  # nothing else: it is what the file is about
    assert modelhub("show", tmp_path / name, "--json").json["parameters"] == 2 * 132 + 1


def broken(**changes: Any) -> bytes:
    return to_bytes({"w": np.ones(4, np.float32)}).replace(*changes["swap"])


BAD = {
    "cut": (to_bytes(TREE)[:-40], "left"),
    "more": (to_bytes({"w": np.ones(4, np.float32)}) + b"\0", "after the end"),
    "sides": (broken(swap=(b"\x91\x04", b"\x91\x05")), "takes 20 bytes, found 16"),
    "deep": (b"\x81\xa7float32" * 200 + b"\xc0", "nested more than 64 deep"),
    "wide": (b"\xdf\xff\xff\xff\xff\xa7float32", "bytes are left"),
    "no value": (b"\x81\xa7float32\xc1", "0xc1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str, tmp_path: Path, modelhub) -> None:
    data, reason = BAD[name]
    (tmp_path / "bad.msgpack").write_bytes(data)
    shown = modelhub("show", tmp_path / "bad.msgpack", "--json", status=None).json
    assert shown["state"] in ("invalid", "incomplete")
    assert reason in shown["reason"]


def test_msgpack_that_is_no_model(tmp_path: Path, modelhub) -> None:
    (tmp_path / "cache.msgpack").write_bytes(msgpack.packb({"user": "ada", "ids": list(range(50))}))
    assert modelhub("scan", tmp_path, "--json").json["unknown"] == 1
