"""Runs an IR with OpenVINO on inputs that are made up from what it declares. In a worker only: OpenVINO reads the weights and
starts threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SIDES = (8, 1, 64, 224, 16, 512, 16000)
"""What is tried for sides that a model leaves open."""
MAX_ELEMENTS = 1 << 26
NUMBERS = 97
"""Numbers that are made up lie below it: most vocabularies and tables are larger."""


def compiled(path: str) -> Any:
    """The model at ``path``, compiled for the processor. What OpenVINO raises is the model's own trouble."""
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": 2})


def tried(model: Any) -> tuple[str, list[str]]:
    """(the inputs' names and sides, the outputs that have NaN), for the first guess at open sides that runs. ValueError with
    OpenVINO's last words where none does."""
    import numpy as np

    said = "it takes no inputs that can be made up"
    seen: set[str] = set()
    for side in SIDES:
        for most in (NUMBERS, 2):
            feed = {one.any_name: _values(one, side, most) for one in model.inputs if one.get_names()}
            if len(feed) < len(model.inputs):
                raise ValueError("an input has no name")
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in feed.items())[:300]
            if f"{shapes} {most}" in seen:
                continue
            seen.add(f"{shapes} {most}")
            try:
                request = model.create_infer_request()
                request.infer(feed)
                outputs = [np.array(request.get_output_tensor(number).data) for number in range(len(model.outputs))]
            except Exception as error:  # noqa: BLE001 - OpenVINO raises what its C++ raises
                said = " ".join(str(error).split())[-300:]
                continue
            names = [one.any_name if one.get_names() else f"{number}" for number, one in enumerate(model.outputs)]
            return shapes, [
                name for name, array in zip(names, outputs, strict=True) if array.dtype.kind == "f" and np.isnan(array).any()
            ]
    raise ValueError(said)


def _values(port: Any, side: int, most: int) -> Any:
    import numpy as np

    shape = _shape(port.get_partial_shape(), side)
    name, kind = port.any_name.lower(), port.get_element_type()
    if np.prod(shape, dtype=np.float64) > MAX_ELEMENTS:
        raise ValueError(f"input {port.any_name!r:.200} of {shape} is too large to make up")
    if kind.get_type_name() == "string":
        return np.full(shape, "text")
    dtype, random = np.dtype(kind.to_dtype()), np.random.default_rng(0)
    if "mask" in name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if "beam_idx" in name or "token_type" in name:
        return np.zeros(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return random.integers(0, most, shape).astype(dtype)


def _shape(declared: Any, side: int) -> Sequence[int]:
    """Open sides are ``side``, within the bounds that the model sets; a batch is one."""
    if declared.rank.is_dynamic:
        return [1, side]
    sides = []
    for number, one in enumerate(declared):
        if one.is_static:
            sides.append(one.get_length())
        else:
            wanted = 1 if number == 0 and len(declared) > 1 else side
            top = one.get_max_length()
            sides.append(max(one.get_min_length(), min(wanted, top) if top > 0 else wanted))
    return sides
