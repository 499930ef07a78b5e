"""Plain HDF5, written by h5py: every layout and filter is read to the bit or refused in words; nothing leads out of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from modelhub.found import Found
from modelhub.testing import FormatConformance
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.conftest import Modelhub


class TestHdf5(FormatConformance):
    format = "hdf5"
    library_dtypes = ("F32", "F64", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "C128")

    def write(self, path: Path, tensors: dict[str, NDArray[Any]]) -> None:
        with h5py.File(path, "w") as file:
            for name, array in tensors.items():
                if ".." in name.split("/"):
                    raise ValueError("h5py takes this for a name like any other, and others do not")
                file.create_dataset(name, data=array)


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def layouts(path: Path, **settings: Any) -> None:
    """Every way in which HDF5 keeps the bytes of an array."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w", **settings) as file:
        for kind in ("<f4", ">f4", ">f8", "<i8", ">i2", ">c8"):
            file[f"kinds/{kind[1:]}_{'big' if kind[0] == '>' else 'little'}"] = random.standard_normal((5, 7)).astype(kind)
        array = random.standard_normal((13, 29)).astype("f4")
        file.create_dataset("chunked", data=array, chunks=(4, 10))
        file.create_dataset("gzip", data=array, chunks=(4, 10), compression="gzip")
        file.create_dataset("shuffled", data=array.astype(">f8"), chunks=(5, 5), compression="gzip", shuffle=True)
        file.create_dataset("summed", data=array, chunks=(13, 29), shuffle=True, fletcher32=True)
        file.create_dataset("all", data=array, chunks=(1, 29), shuffle=True, compression="gzip", fletcher32=True)
        file.create_dataset("cube", data=random.integers(0, 99, (5, 6, 7), "i2"), chunks=(2, 4, 3), compression="gzip")
        file.create_dataset("bytes", data=random.integers(0, 99, 100, "u1"), chunks=(30,), shuffle=True, compression="gzip")
        partly = file.create_dataset("partly", (100,), "f4", chunks=(10,), fillvalue=2.5)
        partly[35:42] = 7
        file.create_dataset("blank", (6, 3), "f4", fillvalue=-1)
        file.create_dataset("blank_big", (6,), ">i4", fillvalue=258)
        file.create_dataset("blank_chunks", (6, 3), "f8", chunks=(2, 2))
        shrunk = file.create_dataset("shrunk", data=np.arange(100, dtype="i4"), chunks=(10,), maxshape=(None,))
        shrunk.resize((33,))
        file["scalar"], file["flags"], file["none"] = np.float32(3), np.array([True, False]), np.zeros((0, 4), "f4")
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        compact = h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((2, 3)), plan)
        compact.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(6, dtype="f4").reshape(2, 3))
        file["soft"] = h5py.SoftLink("/kinds/../chunked")
        file["also"] = h5py.SoftLink("kinds/f4_little")
        file["hard"] = file["gzip"]
        file["round"], file["nowhere"] = h5py.SoftLink("/round"), h5py.SoftLink("/not/there")
        file["kinds/up"] = file["/"]


@pytest.mark.parametrize("settings", [{}, {"userblock_size": 1024}, {"libver": "v108"}], ids=["", "userblock", "v108"])
def test_every_layout_is_read_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "a.h5"
    layouts(path, **settings)
    table = look(path).load_table().by_name
    with h5py.File(path) as file:
        kinds = {f"kinds/{name}" for name in file["kinds"] if name != "up"}
        names = kinds | {name for name in file if name not in ("kinds", "round", "nowhere", "soft")}
        assert set(table) == names
        for name, tensor in table.items():
            want = file[name][()]
            assert tensor.shape == want.shape, name
            assert read_tensor(tensor).tobytes() == want.astype(want.dtype.newbyteorder("<")).tobytes(), name


def test_the_latest_format_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["model/w"], file["model/b"] = random.random((5, 7)), random.random(7).astype(">f4")
        file["flags"], file["pairs"] = np.array([True, False]), np.zeros(3, "c8")
        grows = file.create_dataset("grows", data=random.random((40, 8)), chunks=(2, 2), maxshape=(None, 8))
        grows.resize((50, 8))
        for name, shape, limits, sides in (
            ("down", (4, 10), (4, None), (2, 2)), ("across", (6, 7, 4), (9, None, 6), (2, 3, 3)),
            ("long", (5000,), (None,), (1,)), ("may_grow", (4, 5), (9, 8), (2, 3)), ("may_grow_long", (1500,), (9000,), (1,)),
        ):  # fmt: skip
            file.create_dataset(name, data=random.random(shape), chunks=sides, maxshape=limits)
            file.create_dataset(f"{name}_packed", data=random.random(shape), chunks=sides, maxshape=limits, compression="gzip")
        holes = file.create_dataset("holes", (9000,), "f4", chunks=(3,), maxshape=(None,), fillvalue=1.5)
        holes[8000:8010], holes[4] = 7, 2
        both = file.create_dataset("both", data=random.random((90, 80)), chunks=(4, 3), maxshape=(None, None), compression="gzip")
        both.resize((77, 81))
        file.create_dataset("plain", data=random.random((90, 80)), chunks=(2, 3))
        file.create_dataset("packed", data=random.random((90, 80)), chunks=(7, 8), compression="gzip", shuffle=True)
        file.create_dataset("one", data=random.random((9, 8)), chunks=(9, 8))
        file.create_dataset("one_packed", data=random.random((9, 8)), chunks=(9, 8), compression="gzip")
        partly = file.create_dataset("partly", (4000,), "f4", chunks=(2,), fillvalue=2.5)
        partly[3901], partly[5] = 1, 2
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((2, 3))
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space = h5py.h5s.create_simple((5, 7))
        implicit = h5py.h5d.create(file.id, b"implicit", h5py.h5t.NATIVE_DOUBLE, space, plan)
        implicit.write(h5py.h5s.ALL, h5py.h5s.ALL, random.random((5, 7)))
    table = look(tmp_path / "a.h5").load_table().by_name
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(table) == {"model/w", "model/b", *(name for name in file if name != "model")}
        for name, tensor in table.items():
            want = file[name][()]
            assert read_tensor(tensor).tobytes() == want.astype(want.dtype.newbyteorder("<")).tobytes(), name


@pytest.mark.parametrize("members", [9, 50, 700, 12_000])
def test_groups_of_many_members_in_the_newer_format(tmp_path: Path, members: int) -> None:
    """Their index is a tree of some levels, and their heap has blocks of blocks."""
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["w"] = np.ones(3)
        for number in range(members):
            file[f"layer_{number}" + "x" * (number % 90)] = h5py.SoftLink("/w")
        want = set(file)
    found = look(tmp_path / "a.h5")
    assert found.state == "ready", found.reason
    assert {tensor.name for tensor in found.load_table().logical} == want


def test_lzf(tmp_path: Path, modelhub: Modelhub) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "random": random.standard_normal((60, 50)).astype("f4"),
        "rows": np.repeat(random.standard_normal((20, 50)).astype("f4"), 3, 0),
        "same": np.full((100, 99), 0.25, "f8"),
        "steps": np.arange(40_000, dtype="i4").reshape(200, 200) // 7,
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(40, 40), compression="lzf")
            file.create_dataset(f"{name}_shuffled", data=array, compression="lzf", shuffle=True, fletcher32=True)
        place = file["rows"].id.get_chunk_info(0)
    modelhub("convert", tmp_path / "a.h5", "--to", "safetensors", "-o", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found[f"{name}_shuffled"], array)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[place.byte_offset : place.byte_offset + 2] = b"\xff\xff"
    (tmp_path / "bad.h5").write_bytes(data)
    answer = modelhub("convert", tmp_path / "bad.h5", "--to", "safetensors", "-o", tmp_path / "bad.safetensors", status=3)
    assert "LZF" in answer.stderr


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("scaled", data=np.arange(100), scaleoffset=0)
        file.create_dataset("many", (1 << 40,), "f4", chunks=(1 << 16,))[7] = 1
        file["texts"], file["empty"] = ["a", "b"], h5py.Empty("f4")
        file["records"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
        file.create_dataset("lists", (2,), h5py.vlen_dtype("f4"))
        file.create_dataset("links", (2,), h5py.ref_dtype)
        file["good"] = np.ones(3, "f4")
    found = {tensor.name: tensor.unsupported for tensor in look(tmp_path / "a.h5").load_table().logical}
    words = {
        "scaled": "scaleoffset", "many": "chunks, at most", "texts": "texts", "empty": "without a shape",
        "records": "records", "lists": "lists of any length", "links": "references",
    }  # fmt: skip
    assert found.pop("good") == ""
    assert set(found) == set(words)
    for name, word in words.items():
        assert word in found[name]


def test_values_are_checked_and_converted_where_some_are_no_numbers(tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.numpy import load_file

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["texts"], file["good"] = ["a", "b"], np.ones(3, "f4")
    assert modelhub("verify", tmp_path / "a.h5", "--level", "values").lines[0].startswith("ok")
    modelhub("convert", tmp_path / "a.h5", "--to", "safetensors", "--skip-unsupported", "-o", tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["good"].tolist() == [1, 1, 1]


def test_nothing_leads_out_of_the_file(tmp_path: Path, modelhub: Modelhub) -> None:
    """Every road leads to a pipe that nobody writes to: whoever opened it would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "pipe0").symlink_to(pipe)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(pipe), "/w")
        file["through"] = h5py.SoftLink("/link/w")
        file["model_weights"] = h5py.ExternalLink(str(pipe), "/w")
        file["vars"] = h5py.SoftLink("/link/vars")
        inner = file.create_group("inner")
        inner.create_dataset("stored", (10,), "f4", external=[(str(pipe), 0, 40)])
        source = h5py.VirtualSource(str(pipe), "w", shape=(10,))
        for name, shape in (("made", (10,)), ("made2", (20,))):
            layout = h5py.VirtualLayout(shape, "f4")
            layout[:10] = source
            inner.create_virtual_dataset(name, layout)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        part = h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,))  # as many files as there are
        part.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (10,), (10,))
        whole = h5py.h5s.create_simple((10,))
        plan.set_virtual(part, f"{tmp_path}/pipe%b".encode(), b"w", whole)
        grows = h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,))
        h5py.h5d.create(inner.id, b"grows", h5py.h5t.NATIVE_FLOAT, grows, plan)
        inner["good"] = np.ones(3, "f4")
    shown = modelhub("show", tmp_path / "a.h5", "--tensors", "--json").json
    assert shown["state"] == "ready", shown["reason"]
    unsafe = [item["message"] for item in shown["findings"] if item["severity"] == "unsafe"]
    assert all("pipe" in text for text in unsafe)
    lost = ("link", "through", "model_weights", "vars", "inner/stored", "inner/made", "inner/made2", "inner/grows")
    assert all(any(repr(name) in text for text in unsafe) for name in lost)
    result = modelhub("verify", tmp_path / "a.h5", status=1)
    assert "unsafe" in result.stdout


def test_a_dataset_of_gigabytes_is_indexed_at_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((1 << 30, 2)), plan)
    assert os.path.getsize(tmp_path / "a.h5") > 8 << 30
    (tensor,) = look(tmp_path / "a.h5").load_table().logical
    assert (tensor.shape, tensor.value is not None and tensor.value[2]) == ((1 << 30, 2), 8 << 30)  # type: ignore[index]
