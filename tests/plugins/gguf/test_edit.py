"""Keys set and removed: the type that a key has is kept, another may be given, and what would make a broken file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from modelhub import Metadata
from modelhub_gguf.edit import edit
from modelhub_gguf.fields import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U64,
    Field,
    array,
    boolean,
    f32,
    i32,
    string,
    u32,
)
from modelhub_gguf.texts import from_texts, to_text

from tests.conftest import Modelhub
from tests.plugins.gguf.llama_files import model

NATIVE = {
    "general.architecture": string("llama"),
    "general.name": string("before"),
    "llama.context_length": u32(2048),
    "llama.rope.freq_base": f32(10000.0),
    "tokenizer.ggml.add_bos_token": boolean(False),
    "general.tags": array(STRING, ["a"]),
    "llama.sections": array(I32, [1, 2]),
    "tokenizer.ggml.eos_token_id": i32(2),
}


def changed(**changes: str | None) -> dict[str, Any]:
    return dict(edit(Metadata(native=NATIVE), {key.replace("__", "."): text for key, text in changes.items()}).native)


@pytest.mark.parametrize(
    ("key", "text", "field"),
    [
        ("general.name", "12", string("12")),
        ("llama.context_length", "4096", u32(4096)),
        ("llama.context_length", "0x1000", u32(4096)),
        ("llama.context_length", "u64:5", Field(U64, 5)),
        ("llama.rope.freq_base", "500000", f32(500000.0)),
        ("tokenizer.ggml.add_bos_token", "True", boolean(True)),
        ("tokenizer.ggml.eos_token_id", "-1", i32(-1)),
        ("general.tags", '["x", "y, z"]', array(STRING, ["x", "y, z"])),
        ("general.tags", "x,y", array(STRING, ["x", "y"])),
        ("llama.sections", "[3, 4, 5]", array(I32, [3, 4, 5])),
        ("my.key", "u8:7", Field(U8, 7)),
        ("my.key", "i8:-7", Field(I8, -7)),
        ("my.key", "f64:0.1", Field(F64, 0.1)),
        ("my.key", "bool:yes", boolean(True)),
        ("my.key", "string:u32:5", string("u32:5")),
        ("my.key", "[u16]:[1, 2]", Field(ARRAY, [1, 2], U16)),
        ("my.key", "[string]:", array(STRING, [])),
        ("my.key", "[bool]:true,false", array(BOOL, [True, False])),
        ("my.key", "plain text", string("plain text")),
        ("general.url", "https://example.org", string("https://example.org")),
        ("general.version", "5", string("5")),
        ("llama.expert_count", "8", u32(8)),
        ("llama.rope.scaling.factor", "2.5", f32(2.5)),
        ("llama.some_offset", "-3", i32(-3)),
        ("llama.big", "-3000000000", Field(I64, -3000000000)),
        ("general.quantization_version", "2", u32(2)),
        ("tokenizer.ggml.pre", "5", string("5")),
    ],
)
def test_a_key_gets_the_type_that_it_has_or_is_given(key: str, text: str, field: Field) -> None:
    after = edit(Metadata(native=NATIVE), {key: text}).native
    assert after[key] == field
    assert list(after)[: len(NATIVE)] == list(NATIVE)  # its place is kept


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("llama.context_length", "many", "is not a u32"),
        ("llama.context_length", "-1", "-1 is not a u32"),
        ("llama.context_length", "4294967296", "is not a u32"),
        ("my.key", "u8:256", "256 is not a u8"),
        ("my.key", "f32:1e39", "is not a f32"),
        ("tokenizer.ggml.add_bos_token", "maybe", "neither true nor false"),
        ("llama.sections", "[1, 2.5]", "is not a i32"),
        ("split.count", "3", "--max-shard-size"),
        ("general.architecture", "", "a name was expected"),
        ("general.architecture", None, "every GGUF names its architecture"),
        ("general.alignment", "3", "no alignment"),
        ("general.alignment", "u64:32", "no alignment"),
        ("general.nam", None, "there is general.name"),
        ("two words", "x", "no name for a key"),
        ("", "x", "no name for a key"),
    ],
)
def test_what_cannot_be_is_refused(key: str, text: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        edit(Metadata(native=NATIVE), {key: text})


def test_a_removed_key_is_gone_from_all_that_is_written() -> None:
    before = Metadata(native=NATIVE, stored={"general.name": "before", "x": "y"})
    after = edit(before, {"general.name": None})
    assert "general.name" not in after.native
    assert after.stored == {"x": "y"}
    assert before.native["general.name"] == string("before")


def test_scalars_go_through_texts_and_back() -> None:
    fields = {
        "general.architecture": string("llama"), "llama.a": u32(7), "llama.b": i32(-7), "llama.c": f32(1e-5),
        "llama.d": boolean(True), "llama.e": f32(10000.0), "general.name": string("7"), "tokenizer.ggml.model": string("llama"),
        "free": string("[1]"), "llama.f": array(I32, [1, 2]), "general.tags": array(STRING, ["ü", "y"]),
        "llama.g": array(F32, [0.5, 1.0]), "llama.h": Field(U64, 1 << 40), "tokenizer.ggml.bos_token_id": u32(1),
    }  # fmt: skip
    texts = {key: text for key, field in fields.items() if (text := to_text(field)) is not None}
    back = from_texts(texts)
    assert {key: (field.type, field.item) for key, field in back.items()} == {
        key: (field.type, field.item) for key, field in fields.items()
    }
    assert {key: to_text(field) for key, field in back.items()} == texts


def test_keys_are_set_in_a_copy_and_in_place(modelhub: Modelhub, tmp_path: Path) -> None:
    source = model(tmp_path / "a.gguf")
    data = source.read_bytes()
    changes = ("--set", "general.name=Other", "--set", "llama.context_length=8192", "--unset", "general.license")
    modelhub("convert", source, "--to", "gguf", *changes, "-o", tmp_path / "b.gguf", MODELHUB_HOME=str(tmp_path / "home"))
    assert source.read_bytes() == data
    modelhub("convert", source, "--to", "gguf", *changes, "--in-place", MODELHUB_HOME=str(tmp_path / "home"))
    assert source.read_bytes() == (tmp_path / "b.gguf").read_bytes()
    reader = gguf.GGUFReader(source)
    assert reader.fields["general.name"].contents() == "Other"
    assert reader.fields["llama.context_length"].contents() == 8192
    assert "general.license" not in reader.fields
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 400
    wrong = modelhub("convert", source, "--to", "gguf", "--set", "llama.context_length=x", "--in-place", status=2)
    assert "llama.context_length: 'x' is not a u32" in wrong.stderr


def test_a_catalogued_file_that_is_changed_in_place_stays_the_same_model(modelhub: Modelhub, tmp_path: Path) -> None:
    model(tmp_path / "a.gguf")
    modelhub("scan", tmp_path)
    modelhub("verify", "a", "--level", "digest")
    (before,) = modelhub("ls", "--json").json
    modelhub("convert", "a", "--to", "gguf", "--set", "general.license=apache-2.0", "--in-place")
    (after,) = modelhub("ls", "--json").json
    assert (after["id"], after["path"], after["state"]) == (before["id"], "a.gguf", "ready")
    assert before["digest"]
    assert after["digest"] is None
    assert "apache-2.0" in modelhub("show", "a").stdout
    assert modelhub("scan", tmp_path, "--json").json["changed"] == 0
