"""HDF5 and Keras files that are wrong or hostile, each in one way. `BAD` maps a name to (what makes it at a path, the states that
it may get, a text that its reason must hold)."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Maker = Callable[[Path], object]
MAGIC = b"\x89HDF\r\n\x1a\n"


def chunked() -> bytes:
    """Datasets that are compressed, and that were never written."""
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file.create_dataset(
            "w", data=np.zeros((13, 29), ">f4"), chunks=(4, 10), compression="gzip", shuffle=True, fletcher32=True
        )
        file.create_dataset("blank", (6, 3), "f4", fillvalue=-1)
        file["soft"] = h5py.SoftLink("/w")
    return data.getvalue()


def growing() -> bytes:
    """Datasets whose chunks are in arrays, fixed and extensible."""
    data = io.BytesIO()
    with h5py.File(data, "w", libver="latest") as file:
        file.create_dataset("fixed", data=np.ones((9, 7), "f4"), chunks=(2, 2), maxshape=(20, 7), compression="lzf")
        file.create_dataset("grows", data=np.ones((70, 3), "f4"), chunks=(1, 2), maxshape=(None, 9))
    return data.getvalue()


def good(layers: int = 40, **settings: Any) -> bytes:
    """Weights as Keras 3 lays them out, and enough of them for a B-tree of some nodes."""
    data = io.BytesIO()
    with h5py.File(data, "w", **settings) as file:
        for number in range(layers):
            group = file.create_group(f"layers/dense_{number}/vars")
            group.attrs["name"] = f"d{number}"
            group["0"], group["1"] = np.full((3, 4), number, "f4"), np.zeros(4, "f4")
    return data.getvalue()


def whole(config: str = "{}") -> bytes:
    """A model as Keras 2 laid it out."""
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file.attrs["model_config"], file.attrs["keras_version"] = config, "2.15.0"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.asarray([b"d"])
        group.create_group("d").attrs["weight_names"] = np.asarray([b"d/kernel:0"])
        group["d/d/kernel:0"] = np.ones((2, 2), "f4")
    return data.getvalue()


def patched(data: bytes, at: int, value: int, kind: str = "Q") -> bytes:
    return data[:at] + struct.pack(f"<{kind}", value) + data[at + struct.calcsize(kind) :]


def looped(data: bytes, level: int) -> bytes:
    """Every node of a B-tree has itself as its first child, and as its neighbour to the right (specification, III.A.1)."""
    out, at = bytearray(data), data.find(b"TREE")
    while at >= 0:
        out[at + 5] = level
        struct.pack_into("<Q", out, at + 16, at)
        struct.pack_into("<Q", out, at + 32, at)
        at = data.find(b"TREE", at + 1)
    return bytes(out)


def continued(data: bytes) -> bytes:
    """The root's header goes on in a block that is its own first one."""
    root = struct.unpack_from("<Q", data, 64)[0]
    size = struct.unpack_from("<I", data, root + 8)[0]
    message = struct.pack("<HHB3xQQ", 0x10, 16, 0, root + 16, size)
    return data[: root + 16] + message + data[root + 16 + len(message) :]


def counted(data: bytes, signature: bytes, skip: int) -> bytes:
    """The count of entries behind every ``signature`` is the largest there is."""
    out, at = bytearray(data), data.find(signature)
    while at >= 0:
        struct.pack_into("<H", out, at + skip, 0xFFFF)
        at = data.find(signature, at + 1)
    return bytes(out)


def dimensions(path: Path) -> None:
    """A shape of 2^40 x 2^30 over the bytes of a (3, 4)."""
    data = good()
    shape = struct.pack("<QQ", 3, 4)
    path.write_bytes(data.replace(shape, struct.pack("<QQ", 1 << 40, 1 << 30)))


def chunks(path: Path) -> None:
    """A compressed dataset whose chunks claim to stand behind the end of the file."""
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.zeros((64, 64), "f4"), chunks=(32, 32), compression="gzip")
        places = [file["w"].id.get_chunk_info(number).byte_offset for number in range(4)]
    data = path.read_bytes()
    for place in places:
        data = data.replace(struct.pack("<Q", place), struct.pack("<Q", 1 << 40))
    path.write_bytes(data)


def bomb(path: Path) -> None:
    """A chunk that would become 4 GB, in a file of some kilobytes; nobody has to inflate it to list it."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("w", (1 << 30,), "f4", chunks=(1 << 27,), compression="gzip")
        made.id.write_direct_chunk((0,), b"x\x9c" + bytes(100))


def long(path: Path) -> None:
    """Names that are short in the file, and long in its table."""
    with h5py.File(path, "w") as file:
        group = file.create_group("x" * 60_000)
        made = group.create_dataset("w", data=np.zeros(1))
        for number in range(100):
            group[str(number)] = made


def archive(path: Path, members: dict[str, bytes], *, twice: str = "") -> None:
    with zipfile.ZipFile(path, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice, as is meant
        for name, data in members.items():
            target.writestr(name, data)
        if twice:
            target.writestr(twice, b"{}")


CONFIG = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": []}}).encode()
KERAS = {"metadata.json": b"{}", "config.json": CONFIG, "model.weights.h5": good()}
REFUSED = ("invalid", "incomplete")


def bytes_of(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def keras(**changes: bytes | None) -> Maker:
    """An archive with members changed, or left out."""
    names = {"config": "config.json", "metadata": "metadata.json", "weights": "model.weights.h5", "npz": "model.weights.npz"}
    members: dict[str, bytes | None] = {**KERAS, **{names[key]: data for key, data in changes.items()}}
    return lambda path: archive(path, {name: data for name, data in members.items() if data is not None})


BAD: dict[str, tuple[Maker, tuple[str, ...], str]] = {
    "empty.h5": (bytes_of(b""), REFUSED, "no HDF5 file"),
    "text.h5": (bytes_of(b"404: not found"), REFUSED, "no HDF5 file"),
    "page.h5": (bytes_of(b"<html>404</html>"), REFUSED, "web page"),
    "magic.h5": (bytes_of(MAGIC), REFUSED, "the superblock"),
    "half.weights.h5": (bytes_of(good()[: len(good()) // 2]), REFUSED, "truncated file"),
    "version.h5": (bytes_of(good()[:8] + b"\x09" + good()[9:]), ("unsupported",), "version 9"),
    "root.weights.h5": (bytes_of(patched(good(), 64, 0)), REFUSED, "expected an object's header"),
    "root_far.weights.h5": (bytes_of(patched(good(), 64, 1 << 60)), REFUSED, "the file ends at"),
    "loop.weights.h5": (bytes_of(looped(good(), 1)), REFUSED, "leads back to itself"),
    "flat_loop.weights.h5": (bytes_of(looped(good(), 0)), REFUSED, "no symbol table"),
    "more.weights.h5": (bytes_of(continued(good())), REFUSED, "leads back to itself"),
    "counts.weights.h5": (bytes_of(counted(good(), b"TREE", 6)), REFUSED, "the file ends at"),
    "symbols.weights.h5": (bytes_of(counted(good(), b"SNOD", 6)), REFUSED, "the file ends at"),
    "heap.weights.h5": (bytes_of(good().replace(b"HEAP", b"HOAP")), REFUSED, "no heap"),
    "dimensions.h5": (dimensions, REFUSED, "are stored"),
    "chunks.h5": (chunks, REFUSED, "the file ends at"),
    "bomb.h5": (bomb, ("ready",), ""),
    "long.h5": (long, REFUSED, "a name of 60000 characters"),
    "config.h5": (bytes_of(whole("{not json")), REFUSED, "not JSON"),
    "list.h5": (bytes_of(whole("[1, 2]")), REFUSED, "not an object"),
    "deep.h5": (bytes_of(whole('{"a":' * 9000)), REFUSED, "not JSON"),
    "empty.keras": (bytes_of(b""), REFUSED, "neither a zip archive nor HDF5"),
    "no_weights.keras": (keras(weights=None), REFUSED, "there is no model.weights.h5"),
    "npz.keras": (keras(weights=None, npz=b"PK"), ("unsupported",), "model.weights.npz"),
    "no_config.keras": (keras(config=None, metadata=None), REFUSED, "without config.json"),
    "bad_config.keras": (keras(config=b"{"), REFUSED, "config.json is not JSON"),
    "deep.keras": (keras(config=b'{"a":[' * 200_000 + b"]}" * 200_000), REFUSED, "not JSON"),
    "short_weights.keras": (keras(weights=good()[:3000]), REFUSED, "truncated file"),
    "text_weights.keras": (keras(weights=b"hello" * 100), REFUSED, "no HDF5 file"),
    "twice.keras": (lambda path: archive(path, KERAS, twice="config.json"), REFUSED, "config.json"),
    "cut.keras": (lambda path: (keras()(path), path.write_bytes(path.read_bytes()[:-500])), REFUSED, ""),
}  # fmt: skip
