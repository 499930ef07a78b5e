"""The conformance kit on first-party formats, and on plugins with one fault each: it must name the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from modelhub import plugins
from modelhub.testing import FormatConformance
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig

EXAMPLE = Path(__file__).parent.parent / "example_plugin" / "modelhub_npz.py"


class TestSafetensors(FormatConformance):
    format = "safetensors"

    def write(self, path, tensors):
        save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}, path)

    def read(self, path):
        return load_file(path)


class TestPytorch(FormatConformance):
    format = "pytorch"

    def write(self, path, tensors):
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)

    def read(self, path):
        return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


class TestLegacyPytorch(TestPytorch):
    def write(self, path, tensors):
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save(state, path, _use_new_zipfile_serialization=False)


class TestHuggingface(FormatConformance):
    """A directory as transformers lays one out, without the model class, which would not take any names and dtypes."""

    format = "huggingface"

    def write(self, path, tensors):
        path.mkdir()
        LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(path)
        save_file(
            {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()},
            path / "model.safetensors",
        )

    def read(self, path):
        return load_file(path / "model.safetensors")


class Npz(FormatConformance):
    format = "npz"

    def write(self, path, tensors):
        np.savez(path, **tensors)

    def read(self, path):
        return dict(np.load(path))


@pytest.fixture
def faulty(make_plugin, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Npz]:
    """The example plugin with one piece of its source replaced; modelhub's own format of that name steps back."""
    monkeypatch.setenv("MODELHUB_DISABLE", "numpy")

    def make(old: str, new: str) -> Npz:
        source = EXAMPLE.read_text()
        assert old in source
        make_plugin("npz", source.replace(old, new))
        plugins.use(plugins.load())
        return Npz()

    return make


FAULTS = {
    "confident-of-nothing": (
        "test_files_of_others_are_not_claimed",
        'suffixes=(".npz",), extension=".npz", dtypes=tuple(DESCRS),\n                 detect=detect',
        'suffixes=(".npz", ".txt"), extension=".npz", dtypes=tuple(DESCRS), detect=lambda file: Detection([file.path])',
        "claims notes.txt",
    ),
    "asked-about-the-wrong-suffix": (
        "test_a_real_file_is_detected_and_described", 'suffixes=(".npz",)', 'suffixes=(".npy",)', "sample.npz is not recognised",
    ),
    "output-not-recognised": (
        "test_the_declaration_is_complete", 'extension=".npz"', 'extension=".zip"', "would not be recognised",
    ),
    "no-title": ("test_the_declaration_is_complete", 'title="NumPy archive"', 'title=""', "Format.title"),
    "no-dtypes": ("test_the_declaration_is_complete", "dtypes=tuple(DESCRS)", "dtypes=()", "name what the format can store"),
    "an-unknown-dtype": (
        "test_the_declaration_is_complete", "dtypes=tuple(DESCRS)", 'dtypes=("FLOAT32",)', "which is no registered dtype",
    ),
    "wrong-offset": (
        "test_a_real_file_is_detected_and_described",
        "Extent(member.file, member.offset + start, nbytes)",
        "Extent(member.file, member.offset + start - 4, nbytes)",
        "differs from what was written, from byte 0 on",
    ),
    "wrong-name": (
        "test_odd_names", '.removesuffix(".npy")', '.removesuffix(".npy").split("/")[-1]',
        "were written and are not in the table",
    ),
    "fortran-forgotten": (
        "test_shapes_of_every_kind", 'header[2] == b"True"', "False", "'fortran' differs from what was written",
    ),
    "unsigned-taken-for-signed": (
        "test_every_declared_dtype", "DTYPES[descr], header", 'DTYPES[descr.replace("u2", "i2")], header',
        "'values' is I16, U16 was written",
    ),
    "reads-weights": (
        "test_weights_are_not_read",
        "for member in zip_members",
        "len(checkpoint.primary.read(0, checkpoint.primary.size))\n    for member in zip_members",
        "read headers, not weights",
    ),
    "crashes-on-broken-bytes": (
        "test_flipped_bytes",
        'raise InvalidFile(f"member {member.name!r} does not start',
        'raise ValueError(f"member {member.name!r} does not start',
        "On broken input raise modelhub.InvalidFile",
    ),
    "hangs-on-broken-bytes": (
        "test_truncated_anywhere",
        "    for member in zip_members(checkpoint.primary, fold_case=False):",
        "    while checkpoint.primary.tail[-22:-18] != b'PK\\x05\\x06': pass\n    for member in "
        "zip_members(checkpoint.primary, fold_case=False):",
        "bound every loop by the size of the file",
    ),
    "broken-is-unknown": (
        "test_truncated_anywhere", 'file.head.startswith(b"PK") else', 'file.tail[-22:-20] == b"PK" else None and', "Rejected",
    ),
    "clock-in-the-output": (
        "test_writing_twice_gives_the_same_bytes",
        "    yield zip_.directory()",
        "    import os\n    yield zip_.add('id', os.urandom(8))\n    yield zip_.directory()",
        "differs from run to run",
    ),
    "cannot-write-what-it-declares": ("test_every_declared_dtype_can_be_written", '"<c8": "C64", ', "", "BF16"),
    "refuses-scalars": (
        "test_odd_tensors_are_written_or_refused",
        "    for tensor in table.logical:\n",
        "    for tensor in table.logical:\n        if not tensor.shape: raise InvalidFile('no scalars')\n",
        "create() refuses 'scalar'",
    ),
    "drops-a-tensor": (
        "test_what_is_written_is_read_back", "in table.logical:\n", "in table.logical[1:]:\n",
        "were written and are not in the table",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named(faulty, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test, old, new, says = FAULTS[case]
    monkeypatch.setattr("modelhub.testing.kit.SECONDS", 0.5)
    if case == "cannot-write-what-it-declares":
        old, new = "dtypes=tuple(DESCRS)", 'dtypes=(*DESCRS, "BF16")'
    kit = faulty(old, new)
    method = getattr(kit, test)
    with pytest.raises((AssertionError, KeyError), match=None) as caught:
        method(tmp_path) if "tmp_path" in method.__code__.co_varnames else method()
    assert says in str(caught.value)


def test_a_missing_plugin_and_a_missing_write_are_said(tmp_path: Path) -> None:
    class Nowhere(FormatConformance):
        format = "nowhere"

    with pytest.raises(AssertionError, match=r"no plugin declares a format called 'nowhere'.*entry-point group"):
        Nowhere().test_the_declaration_is_complete()
    Nowhere.format = "safetensors"
    with pytest.raises(NotImplementedError, match="needs `def write"):
        Nowhere().test_a_real_file_is_detected_and_described(tmp_path)
    Nowhere.format = ""
    with pytest.raises(AssertionError, match="needs `format = "):
        Nowhere().test_the_declaration_is_complete()
