"""Importance matrices: both layouts, what encoders get of them, and files that are none."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import Assignment, FileProblem, Node, RecipeOptions, Table, plugins
from modelhub.engine.cast import read_floats
from modelhub.engine.values import Handles
from modelhub_gguf.fields import string, u32
from modelhub_gguf.recipes.imatrix import read_imatrix

from tests.plugins.gguf.importance_files import Sums, measured, write_dat, write_gguf
from tests.plugins.gguf.mixed_models import MODELS

LLAMA, MIXTRAL = "llama of 8 layers", "mixtral"


def assign(name: str, table: Table, **options: Any) -> Assignment:
    (found,) = (one for one in plugins.get().recipes if one.name == name and "gguf" in one.formats)
    assert found.assign
    return found.assign(table, RecipeOptions(**options))


def weights(value: Any) -> np.ndarray:
    assert isinstance(value, Node)
    with_handles = Handles()
    try:
        return read_floats(value, with_handles).reshape(value.shape)
    finally:
        with_handles.close()


def expected(entries: Sums, name: str) -> np.ndarray:
    """sum / count, in float32."""
    sums, counts = entries[name]
    return sums / counts[:, None]


def test_weights_are_sums_over_counts(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    entries = measured(spec.shapes)
    path = write_gguf(tmp_path / "imatrix.gguf", entries)
    choices = assign("q4_k_m", spec.table(), importance=str(path)).choices
    for name in entries:
        if "norm" not in name:
            value = weights(choices[name].importance)
            assert value.dtype == np.float32
            assert value.shape == spec.shapes[name][-1:]
            np.testing.assert_array_equal(value, expected(entries, name)[0])
    assert choices["token_embd.weight"].importance is None
    assert choices["output.weight"].importance is None


def test_a_row_of_weights_for_each_expert_and_ones_where_none_came_by(tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    entries = dict(measured(spec.shapes))
    sums, counts = entries["blk.1.ffn_up_exps.weight"]
    counts[3], sums[3] = 0, 0
    counts[4] = 2.5  # whole numbers are what the reference makes of them, half away from zero
    path = write_gguf(tmp_path / "imatrix.gguf", entries)
    choice = assign("q4_k_m", spec.table(), importance=str(path)).choices["blk.1.ffn_up_exps.weight"]
    value = weights(choice.importance)
    assert value.shape == (8, 256)
    np.testing.assert_array_equal(value[3], np.ones(256, np.float32))
    np.testing.assert_array_equal(value[4], sums[4] / np.float32(3))
    np.testing.assert_array_equal(value[5], sums[5] / counts[5])


def test_the_older_layout_says_the_same(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    entries = measured(spec.shapes)
    path = write_dat(tmp_path / "imatrix.dat", entries, dataset="wiki.txt", chunks=7)
    found = assign("q5_k_m", spec.table(), importance=str(path))
    for name in entries:
        if "norm" not in name:
            np.testing.assert_array_equal(weights(found.choices[name].importance), expected(entries, name)[0])
    assert found.native["quantize.imatrix.dataset"] == string("wiki.txt")
    assert found.native["quantize.imatrix.chunks_count"] == u32(7)


def test_the_older_layout_has_one_count_for_all_experts(tmp_path: Path) -> None:
    spec = MODELS[MIXTRAL]()
    entries = {name: (sums, counts[:1]) for name, (sums, counts) in measured(spec.shapes).items()}
    path = write_dat(tmp_path / "imatrix.dat", entries)
    choice = assign("q4_k_m", spec.table(), importance=str(path)).choices["blk.0.ffn_down_exps.weight"]
    sums, counts = entries["blk.0.ffn_down_exps.weight"]
    np.testing.assert_array_equal(weights(choice.importance), sums / counts[0])


def test_what_the_header_says_of_it(tmp_path: Path) -> None:
    """In the order, the types and the length of ``llama-quantize``: texts are cut after 127 bytes."""
    spec = MODELS[LLAMA]()
    entries = measured(spec.shapes)
    path = write_gguf(tmp_path / "imatrix.gguf", entries, dataset="é" * 100, chunks=125)
    native = assign("q4_0", spec.table(), importance=str(path)).native
    assert list(native) == [
        "general.quantization_version",
        "general.file_type",
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "quantize.imatrix.chunks_count",
    ]
    assert native["quantize.imatrix.file"] == string(str(path)[:127])
    assert native["quantize.imatrix.dataset"] == string(("é" * 100).encode()[:127])
    assert native["quantize.imatrix.entries_count"] == u32(len(entries))
    assert native["quantize.imatrix.chunks_count"] == u32(125)
    none_said = write_gguf(tmp_path / "none.gguf", entries, chunks=0)
    assert "quantize.imatrix.chunks_count" not in assign("q4_0", spec.table(), importance=str(none_said)).native
    assert list(assign("q4_0", spec.table()).native) == ["general.quantization_version", "general.file_type"]


def test_types_that_take_no_notice_get_no_weights(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    path = write_gguf(tmp_path / "imatrix.gguf", measured(spec.shapes))
    for name in ("q8_0", "tq2_0", "f16"):
        choices = assign(name, spec.table(), importance=str(path)).choices
        assert all(choice.importance is None or choice.dtype not in ("Q8_0", "TQ2_0", "F16") for choice in choices.values())


def test_tensors_without_weights_are_said(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    entries = {name: pair for name, pair in measured(spec.shapes).items() if "attn_k" not in name}
    path = write_gguf(tmp_path / "imatrix.gguf", entries)
    (note,) = assign("q4_k_m", spec.table(), importance=str(path)).notes
    missing = "token_embd.weight, output.weight, blk.0.attn_k.weight and 7 more"
    assert note == f"the importance matrix does not weigh {missing}: encoded without"


@pytest.mark.parametrize("layout", [write_gguf, write_dat])
def test_weights_of_another_model(tmp_path: Path, layout: Any) -> None:
    spec = MODELS[LLAMA]()
    entries = dict(measured(spec.shapes))
    entries["blk.2.ffn_down.weight"] = (np.ones((1, 256), np.float32), np.ones(1, np.float32))
    path = layout(tmp_path / "imatrix", entries)
    with pytest.raises(
        ValueError, match=r"256 weights for blk\.2\.ffn_down\.weight, which has 512 \(1 x 512\): .* another model"
    ):
        assign("q4_k_m", spec.table(), importance=str(path))
    entries = {**measured(spec.shapes), "token_embd.weight": (np.ones((1, 96), np.float32), np.ones(1, np.float32))}
    path = layout(tmp_path / "other", entries)
    assert assign("q4_k_m", spec.table(), importance=str(path)).choices["token_embd.weight"].importance is None


def test_types_of_few_bits_need_weights(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    with pytest.raises(
        ValueError, match=r"Q2_K needs importance weights, and blk\.0\.attn_k\.weight has none.*q2_k does without"
    ):
        assign("q2_k_s", spec.table())
    entries = {name: pair for name, pair in measured(spec.shapes).items() if name != "blk.4.attn_q.weight"}
    path = write_gguf(tmp_path / "imatrix.gguf", entries)
    with pytest.raises(ValueError, match=r"imatrix\.gguf has none for blk\.4\.attn_q\.weight"):
        assign("q2_k_s", spec.table(), importance=str(path))
    with pytest.raises(ValueError, match="IQ1_S needs importance weights"):
        assign("q4_k_m", spec.table(), overrides=((r"blk\.4\.attn_q", "iq1_s"),))


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    spec = MODELS[LLAMA]()
    for bad in (np.nan, np.inf, -1.0):
        entries = measured(spec.shapes)
        entries["blk.0.attn_q.weight"][0][0, 7] = bad
        path = write_gguf(tmp_path / "imatrix.gguf", entries)
        choice = assign("q4_k_m", spec.table(), importance=str(path)).choices["blk.0.attn_q.weight"]
        with pytest.raises(Exception, match=r"weights of blk\.0\.attn_q\.weight are not all"):
            weights(choice.importance)


def test_files_that_are_no_importance_matrix(tmp_path: Path) -> None:
    entries = measured(MODELS[LLAMA]().shapes)
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        with pytest.raises(FileProblem, match=f"{re.escape(key)} missing"):
            read_imatrix(str(write_gguf(tmp_path / "keys.gguf", entries, leave_out=key)))
    with pytest.raises(FileProblem, match=r"general\.type says None"):
        read_imatrix(str(write_gguf(tmp_path / "type.gguf", entries, leave_out="general.type")))
    with pytest.raises(FileProblem, match=r"blk\.3\.attn_q\.weight\.counts is missing"):
        read_imatrix(str(write_gguf(tmp_path / "counts.gguf", entries, leave_out="blk.3.attn_q.weight.counts")))
    with pytest.raises(FileProblem, match="no importance weights"):
        read_imatrix(str(write_gguf(tmp_path / "none.gguf", {})))
    path = tmp_path / "text.dat"
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(FileProblem, match=r"number of entries at offset 0 is .* is it an importance matrix"):
        read_imatrix(str(path))


def test_a_file_of_the_older_layout_that_is_cut_short(tmp_path: Path) -> None:
    entries = {"a.weight": (np.ones((1, 4), np.float32), np.ones(1, np.float32))}
    whole = write_dat(tmp_path / "whole.dat", entries).read_bytes()
    end = len(whole) - len("text.txt") - 8
    path = tmp_path / "cut.dat"
    for length in range(end):
        path.write_bytes(whole[:length])
        with pytest.raises(FileProblem):
            read_imatrix(str(path))
    for length in range(end, len(whole) + 1):  # what follows the values may be missing
        path.write_bytes(whole[:length])
        found = read_imatrix(str(path))
        assert list(found.entries) == ["a.weight"]
        assert found.chunks == (3 if length >= end + 4 else 0)
    path.write_bytes(whole[:8] + b"a.weight" + struct.pack("<ii", 1, 1 << 27))
    with pytest.raises(FileProblem):
        read_imatrix(str(path))
