"""Reading safetensors: what the library writes is shown as it is, and what is wrong is said."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.engine.values import read_tensor
from modelhub.found import Found
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tests.corpus.safetensors_bad import BAD, GOOD, build, entry


def look(path: Path) -> Found:
    return inspect_path(str(path), plugins.get().formats)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_the_library_writes_is_listed_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    tensors = {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "mask": np.array([True, False, True]),
        "steps": np.array(7, dtype=np.int64),
        "half": np.ones((2, 2), np.float16),
        "empty": np.zeros((0, 5), np.float64),
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"format": "np", "note": "hello"})
    found = look(path)

    assert (found.format, found.state, found.name) == ("safetensors", "ready", "a")
    assert found.stored == {"format": "np", "note": "hello"}
    assert found.dtypes == {"F32": 12, "F16": 4, "BOOL": 3, "I64": 1, "F64": 0}
    assert found.parameters == 20
    table = found.load_table()
    assert [t.value.offset for t in table.tensors] == sorted(t.value.offset for t in table.tensors)
    for tensor in table.tensors:
        assert tensor.shape == tensors[tensor.name].shape
        assert bytes(read_tensor(tensor)) == tensors[tensor.name].tobytes()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_indexed_with_its_reason(tmp_path: Path, name: str) -> None:
    data, state, reason = BAD[name]
    started = time.monotonic()
    found = look(written(tmp_path / "bad.safetensors", data))
    assert (found.format, found.state) == ("safetensors", state), found.reason
    assert reason in found.reason
    assert "bad.safetensors" in found.reason
    assert not found.tensors
    assert time.monotonic() - started < 1


OURS = {
    "duplicate name, the same entry",
    "duplicate metadata key",
    "dims overflow, no elements",
    "seventy dimensions",
    "leading space",
    "entry is a list",
}


@pytest.mark.parametrize("name", [name for name, (_, state, _) in BAD.items() if state == "invalid"])
def test_what_is_invalid_to_us_is_so_for_a_reason(tmp_path: Path, name: str) -> None:
    """The library refuses it too, but for the rules that only we hold: no name twice, '{' first, objects for entries, sane
    shapes."""
    path = written(tmp_path / "bad.safetensors", BAD[name][0])
    try:
        with safe_open(path, framework="numpy"):
            accepted = True
    except SafetensorError:
        accepted = False
    assert accepted == (name in OURS)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_odd_but_legal_is_read(tmp_path: Path, name: str) -> None:
    data, names = GOOD[name]
    found = look(written(tmp_path / "odd.safetensors", data))
    assert (found.state, found.reason) == ("ready", "")
    assert [tensor.name for tensor in found.load_table().tensors] == names
    with safe_open(tmp_path / "odd.safetensors", framework="numpy") as opened:
        assert set(opened.keys()) == set(names)


def test_a_declared_header_of_any_length_costs_nothing(tmp_path: Path) -> None:
    """A sparse file of 16 GiB whose header claims 90 MB is refused after reading those, one that claims more before."""
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(build(b"{", length=90_000_000))
        file.truncate(16 << 30)
    assert "not JSON" in look(path).reason
    with path.open("r+b") as file:
        file.write(build(b"{", length=1 << 40))
    assert "the format allows" in look(path).reason


FIELDS = st.sampled_from(["U8", "F32", "F4", "BF16", "", "f32", 1, None, True])
NUMBERS = st.one_of(st.integers(-2, 9), st.sampled_from([1 << 62, 1 << 64, 1.0, True, None, "1"]))
ENTRIES = st.fixed_dictionaries(
    {"dtype": FIELDS, "shape": st.lists(NUMBERS, max_size=3), "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3)}
)
HEADERS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "__metadata__", "é"]), ENTRIES), max_size=4)


@settings(max_examples=400, deadline=None)
@given(HEADERS, st.integers(0, 40), st.booleans())
def test_nothing_is_accepted_that_the_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, object]], nbytes: int, escape: bool
) -> None:
    text = "{" + ",".join(json.dumps(name, ensure_ascii=escape) + ":" + json.dumps(item) for name, item in items) + "}"
    path = written(tmp_path_factory.getbasetemp() / "random.safetensors", build(text.encode(), bytes(nbytes)))
    found = look(path)
    assert not [finding for finding in found.findings if finding.check == "plugin"]
    if found.state == "ready":
        assert len({name for name, _ in items}) == len(items)
        with safe_open(path, framework="numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        assert {tensor.name: tensor.shape for tensor in found.load_table().tensors} == shapes


def test_the_strictest_rules_hold_for_contiguous_entries_too(tmp_path: Path) -> None:
    header = {f"t{i}": entry("F32", (2, 2), 16 * i, 16 * i + 16) for i in range(50)}
    assert look(written(tmp_path / "x.safetensors", build(header, bytes(800)))).tensors == 50
    header["t30"]["shape"] = [2, True]
    assert look(written(tmp_path / "x.safetensors", build(header, bytes(800)))).state == "invalid"


TENSORS = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}'


@pytest.mark.parametrize(
    ("start", "stored"),
    [
        ('{"__metadata__":{},', {}),
        ('{"__metadata__":{"step":"1"},', {"step": "1"}),
        ('{"__metadata__": {"step": "1000"}, ', {"step": "1000"}),
        (r'{"__metadata__":{"json":"{\"a\":{}},\"","c":"},","\\\"}":"d"},', {"json": '{"a":{}},"', "c": "},", '\\"}': "d"}),
        ('{"__metadata__":{"step":"1","step":"2"},', "stands twice"),
        (r'{"__metadata__":{"step":"1","s\u0074ep":"2"},', "stands twice"),
        ('{"__metadata__":{"step":1},', "text was expected"),
        ('{"__metadata__":{"step":{}},', "text was expected"),
        ('{"__metadata__":{"step":"1"},,', "not JSON"),
        ('{"__metadata__":{"step""1"},', "not JSON"),
        ('{"__metadata__":{"step":"1"},"__metadata__":{"step":"2"},', "stands twice"),
        (r'{"__metadata__":{"step":"1"},"__metadat\u0061__":{"step":"2"},', "stands twice"),
    ],
)
def test_headers_that_differ_in_their_metadata_only(tmp_path: Path, start: str, stored: dict[str, str] | str) -> None:
    """The tensors after them are known; what is said of them, and where they lie, is each file's own."""
    seen = [written(tmp_path / "known.safetensors", build(('{"__metadata__":{"x":"y"},' + TENSORS).encode(), bytes(16)))]
    assert look(seen[0]).tensors == 2
    path = written(tmp_path / "other.safetensors", build((start + TENSORS).encode(), bytes(range(16))))
    found = look(path)
    if isinstance(stored, str):
        assert found.state == "invalid"
        assert "other.safetensors" in found.reason
        assert stored in found.reason
        return
    assert (found.state, found.stored) == ("ready", stored)
    tensors = {tensor.name: bytes(read_tensor(tensor)) for tensor in found.load_table().tensors}
    assert tensors == {"a": bytes(range(8)), "b": bytes(range(8, 16))}
    with safe_open(path, framework="numpy") as opened:
        assert (opened.metadata() or {}) == stored
    assert look(written(path, path.read_bytes()[:-1])).state == "incomplete"


def test_ties_noted_by_the_library_are_seen_as_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_model

    model = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 6, bias=False), "embed": torch.nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    save_model(model, str(tmp_path / "tied.safetensors"), metadata={"format": "pt"})
    found = look(tmp_path / "tied.safetensors")
    table = found.load_table()
    assert table.ties == {"head.weight": "embed.weight"}
    assert found.parameters == 24
    assert table.by_name["head.weight"].value == table.by_name["embed.weight"].value
    assert [tensor.name for tensor in table.stored] == ["embed.weight"]
    assert found.stored == {"format": "pt"}


def test_notes_that_are_no_ties_stay_text(tmp_path: Path) -> None:
    stored = {"format": "pt", "a": "b", "kept": "gone", "author": "me"}
    header = {"__metadata__": stored, "a": entry(), "pt": entry(start=4, end=8)}
    found = look(written(tmp_path / "x.safetensors", build(header, bytes(8))))
    assert found.stored == stored
    assert sorted(t.name for t in found.load_table().logical) == ["a", "pt"]


def test_what_trainers_write_is_searchable(tmp_path: Path) -> None:
    stored = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "My LoRA",
        "ss_network_dim": "32",
        "ss_network_alpha": "16.0",
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_learning_rate": "NaN",
        "ss_tag_frequency": json.dumps({"dir": {"tag": 1}}),
    }
    save_file({"lora_unet.alpha": np.zeros(1, np.float16)}, tmp_path / "lora.safetensors", metadata=stored)
    found = look(tmp_path / "lora.safetensors")
    assert found.architecture == "stable-diffusion-xl-v1-base/lora"
    assert found.metadata["rank"] == 32
    assert found.metadata["alpha"] == 16.0
    assert found.metadata["base_model"] == "sd_xl_base_1.0.safetensors"
    assert found.metadata["title"] == "My LoRA"
    assert found.metadata["learning_rate"] == "NaN"
    assert found.stored == stored


def test_the_librarys_verdict_is_a_check(tmp_path: Path) -> None:
    from modelhub import Checkpoint

    check = next(check for check in plugins.get().checks if check.name == "safetensors-library")
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(3)}, path)
    found = look(path)
    assert list(check.run(Checkpoint(str(path), [str(path)]), found.load_table())) == []
    path.write_bytes(BAD["hole"][0])
    (finding,) = check.run(Checkpoint(str(path), [str(path)]), found.load_table())
    assert finding.severity == "error"
    assert "refuses" in finding.message
