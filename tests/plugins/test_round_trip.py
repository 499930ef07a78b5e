"""PyTorch to safetensors and back, whole conversions: random state dicts of real torch, equal bit for bit, ties kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st
from modelhub import plugins
from modelhub.convert import convert
from modelhub.detect import inspect_path
from modelhub.model import from_found
from modelhub.plan import ConvertOptions
from safetensors import safe_open

from tests.plugins.pytorch_files import raw
from tests.plugins.test_pytorch_random import flattened, left_by_training, runs, states

LACKING = (torch.complex128, torch.complex32)
"""What torch has and safetensors has not."""


def converted(source: Path, to: str, target: Path) -> Path:
    model = from_found(inspect_path(str(source), plugins.get().formats))
    report = convert(model, to=to, output=str(target), options=ConvertOptions(), plugins=plugins.get())
    assert report.verified
    return Path(report.output)


def contents(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, tuple(value.shape), raw(value)) for name, value in state.items()}


def tied(state: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    """Sets of names that are the very same bytes: place, dtype, shape and strides."""
    places: dict[Any, set[str]] = {}
    for name, value in state.items():
        if value.numel():
            place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.dtype, value.shape, value.stride())
            places.setdefault(place, set()).add(name)
    return {frozenset(names) for names in places.values() if len(names) > 1}


@runs(200)
@given(states(), st.booleans())
def test_any_state_dict_comes_back_from_safetensors(state: dict[str, Any], zipped: bool) -> None:
    expected = flattened(state)
    assume(expected and not any(left_by_training(name) for name in expected))
    assume(not any(value.dtype in LACKING for value in expected.values()))
    event("zip" if zipped else "legacy")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        torch.save(state, place / "in.pt", _use_new_zipfile_serialization=zipped)
        middle = converted(place / "in.pt", "safetensors", place / "middle.safetensors")
        with safe_open(middle, "pt") as file:  # the format's own library agrees on what is in between
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        assert {name: value for name, value in contents(expected).items() if name in stored} == contents(stored)
        loaded = torch.load(converted(middle, "pytorch", place / "out.pt"), weights_only=True)
        assert contents(loaded) == contents(expected)
        # What was tied is tied; a view of one element may join, for it is the same bytes whatever its stride was.
        assert all(any(names <= others for others in tied(loaded)) for names in tied(expected))
