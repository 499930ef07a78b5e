"""TensorFlow files that are wrong: each with its state and its reason, in bounded time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.files import list_directory
from modelhub.found import Found
from modelhub_tensorflow import snappy
from modelhub_tensorflow.bundle import GRAPH
from modelhub_tensorflow.sorted_table import masked

from tests.conftest import Modelhub
from tests.corpus import tensorflow_bad as corpus

FORMATS = plugins.get().formats
DATA = ".data-00000-of-00001"


def look(path: Path) -> Found:
    with plugins.time_limit(10):
        return inspect_path(str(path), FORMATS)


@pytest.mark.parametrize(("name", "index", "state", "reason"), [pytest.param(*case, id=case[0]) for case in corpus.bad_indexes()])
def test_bad_indexes(name: str, index: bytes, state: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(index)
    (tmp_path / f"x{DATA}").write_bytes(bytes(corpus.CHECKPOINT_BYTES))
    found = look(tmp_path / "x.index")
    assert (found.format, found.state) == ("tensorflow", state), found.reason
    assert reason in found.reason


def test_the_good_index_is_good(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(corpus.index())
    (tmp_path / f"x{DATA}").write_bytes(bytes(corpus.CHECKPOINT_BYTES))
    assert look(tmp_path / "x.index").state == "ready"


def test_any_flipped_bit_of_an_index_is_found(tmp_path: Path) -> None:
    whole = corpus.index()
    (tmp_path / f"x{DATA}").write_bytes(bytes(corpus.CHECKPOINT_BYTES))
    for at in range(len(whole)):
        (tmp_path / "x.index").write_bytes(corpus.flipped(whole, at))
        found = look(tmp_path / "x.index")
        assert found.state == "invalid", f"byte {at} of {len(whole)}"
        assert found.format == "tensorflow"


def test_a_graph_without_objects(tmp_path: Path) -> None:
    empty = b"\0" + masked(bytes(4)).to_bytes(4, "little")
    graph = corpus.entry(dtype=7, sides=(), offset=corpus.CHECKPOINT_BYTES, size=len(empty))
    (tmp_path / "x.index").write_bytes(corpus.index({GRAPH.encode(): graph, b"w": corpus.entry()}))
    (tmp_path / f"x{DATA}").write_bytes(bytes(corpus.CHECKPOINT_BYTES) + empty)
    found = look(tmp_path / "x.index")
    assert (found.state, found.tensors) == ("ready", 1), found.reason


def test_an_index_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "book.index").write_bytes(b"a: 1\nb: 2\n" * 100)
    assert not inspect_listing(list_directory(str(tmp_path)), FORMATS).found


def test_a_compressed_index(tmp_path: Path) -> None:
    whole = corpus.index()
    (tmp_path / f"x{DATA}").write_bytes(bytes(corpus.CHECKPOINT_BYTES))
    (tmp_path / "x.index").write_bytes(corpus.compressed(whole))
    (tensor,) = look(tmp_path / "x.index").load_table().tensors
    assert (tensor.name, tensor.shape) == ("w", (4, 4))
    (tmp_path / "x.index").write_bytes(corpus.compressed(whole, claimed=1 << 30))
    assert "at most" in look(tmp_path / "x.index").reason


@pytest.mark.parametrize("lost", ["data", "index"])
def test_missing_files_are_named(made: Path, tmp_path: Path, lost: str, modelhub: Modelhub) -> None:
    shutil.copytree(made / "shards", tmp_path / "m")
    gone = tmp_path / "m" / ("model.data-00001-of-00003" if lost == "data" else "model.index")
    gone.unlink()
    modelhub("scan", tmp_path)
    listed = [item for item in modelhub("ls", "--json").json if item["format"] == "tensorflow"]
    (model,) = listed
    assert (model["name"], model["state"]) == ("model", "incomplete")
    assert gone.name in modelhub("show", model["id"]).stdout


def test_damaged_weights_are_found(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    shutil.copytree(made / "names", tmp_path / "m")
    data = tmp_path / "m" / f"model.ckpt-7{DATA}"
    broken = bytearray(data.read_bytes())
    broken[len(broken) // 2] ^= 1
    data.write_bytes(broken)
    checked = modelhub("verify", data.with_suffix(".index"), "--level", "values", status=None)
    assert checked.returncode
    assert "CRC-32C" in checked.stdout
    assert "large" in checked.stdout


def test_damage_in_the_first_version_is_found(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    broken = bytearray((made / "first" / "model.ckpt").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "model.ckpt").write_bytes(broken)
    assert look(tmp_path / "model.ckpt").state == "ready"
    checked = modelhub("verify", tmp_path / "model.ckpt", "--level", "values", status=None)
    assert checked.returncode
    assert "CRC-32C of the block" in checked.stdout


def test_a_cut_checkpoint_of_the_first_version(made: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes((made / "first" / "model.ckpt").read_bytes()[:-100])
    found = look(tmp_path / "model.ckpt")
    assert (found.format, found.state) == ("tensorflow-v1", "incomplete")
    assert "it was cut" in found.reason


@pytest.mark.parametrize("name", [*corpus.UNSAFE])
def test_operators_that_reach_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(corpus.UNSAFE[name])
    found = look(tmp_path)
    assert found.format == "savedmodel"
    (finding,) = [item for item in found.findings if item.severity == "unsafe"]
    assert name in finding.message


@pytest.mark.parametrize("name", [*corpus.SAFE])
def test_what_every_model_does_is_no_alarm(name: str, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(corpus.SAFE[name])
    assert not [item for item in look(tmp_path).findings if item.severity != "info"]


def test_custom_operators_are_reported(tmp_path: Path, modelhub: Modelhub) -> None:
    (tmp_path / "saved_model.pb").write_bytes(corpus.operator("SentencepieceOp", function=True))
    checked = modelhub("verify", tmp_path)
    assert "SentencepieceOp (1)" in checked.stdout


@pytest.mark.parametrize(("name", "graph", "reason"), [pytest.param(*case, id=case[0]) for case in corpus.bad_graphs()])
def test_bad_graphs(name: str, graph: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.pb").write_bytes(graph)
    found = look(tmp_path / "x.pb")
    assert found.format == "graphdef"
    assert found.state in ("invalid", "incomplete")
    assert reason in found.reason


@pytest.mark.parametrize("content", [b"", b"\x08\x01", b"\x08\x01\x12\xff\xff\xff\xff\x0f", b"junk" * 100])
def test_a_saved_model_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)
    assert look(tmp_path).state in ("invalid", "incomplete")


def test_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n")
    assert look(tmp_path).state == "unsupported"
    (tmp_path / "graph.pbtxt").write_text('node {\n  name: "x"\n  op: "NoOp"\n}\n')
    assert look(tmp_path / "graph.pbtxt").state == "unsupported"


def test_onnx_models_are_still_onnx(tmp_path: Path, sample_drive: Path) -> None:
    source = next((sample_drive / "magika").rglob("*.onnx"))
    shutil.copyfile(source, tmp_path / "model.pb")
    assert look(tmp_path / "model.pb").format == "onnx"


def test_snappy() -> None:
    text = b"abcabcabcabcabcabcabcabc" + b"x" * 70
    # a literal, a copy that reaches into itself, a long literal
    data = bytes([94, 2 << 2]) + b"abc" + bytes([(21 - 1) << 2 | 2, 3, 0]) + bytes([60 << 2, 69]) + b"x" * 70
    assert snappy.decode(data) == text
    for broken in (
        b"",
        b"\xff\xff\xff\xff\xff\xff",
        data[:-1],
        data + b"\0a",
        bytes([5, 2 << 2]) + b"abc" + bytes([4 << 2 | 2, 9, 0]),
    ):
        with pytest.raises(ValueError):
            snappy.decode(broken)
    with pytest.raises(ValueError):
        snappy.decode(b"\xff\xff\xff\xff\x0f" + data)
