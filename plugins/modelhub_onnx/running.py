"""Runs a model with onnxruntime: on inputs that are made up from what it declares, or on the user's.

In a worker only: onnxruntime reads the weights and starts threads. Outputs are kept, so that two models can be held against each
other; nothing here says how far apart is too far.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelhub import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Feed = Mapping[str, NDArray[Any]]

Session = Any
"""An ``onnxruntime.InferenceSession``, which has no types to check."""

SIDES = (8, 1, 512, 576, 64, 256, 16000, 2, 3, 224)
"""What is tried for sides that a model leaves open and no name explains: short texts, one of a kind, windows of audio, images."""
MAX_ELEMENTS = 1 << 26
_TYPES = {
    "tensor(float)": "<f4", "tensor(float16)": "<f2", "tensor(double)": "<f8", "tensor(int64)": "<i8", "tensor(int32)": "<i4",
    "tensor(int16)": "<i2", "tensor(int8)": "|i1", "tensor(uint8)": "|u1", "tensor(uint16)": "<u2", "tensor(uint32)": "<u4",
    "tensor(uint64)": "<u8", "tensor(bool)": "|b1",
}  # fmt: skip
PAST, NEW = 4, 8
"""Positions that are in a cache of keys and values already, and those that come with the inputs."""


def session(path: str) -> Session:
    """The model at ``path``, loaded for the processor. What onnxruntime raises is the model's own trouble."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(loaded: Session, feeds: Sequence[Feed]) -> list[list[Any]]:
    """The outputs for each feed, in the order that the model declares them."""
    return [loaded.run(None, dict(feed)) for feed in feeds]


def suitable(loaded: Session, count: int) -> list[Feed]:
    """Inputs that the model takes, made up: the first guess at its open sides that runs. ValueError with onnxruntime's last words
    where none does, or where an input is nothing that can be made up."""
    said = ""
    seen: set[str] = set()
    for side in SIDES:
        for most in (97, 2):
            feeds: list[Feed] = [dict(invented(loaded, side, most, seed)) for seed in range(count)]
            key = str([(name, array.shape, most if array.dtype.kind in "iu" else 0) for name, array in feeds[0].items()])
            if key in seen:
                continue
            seen.add(key)
            try:
                loaded.run(None, feeds[0])
            except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common type of their own
                said = said or str(error).strip().splitlines()[0][:300]
                continue
            return feeds
    raise ValueError(said or "it takes no inputs that can be made up")


def invented(loaded: Session, side: int, most: int, seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """A value for each input. Floats are normal, numbers are below ``most``; masks, positions and sides are told by their names,
    as exporters give them."""
    import numpy as np

    random = np.random.default_rng(seed)
    for one in loaded.get_inputs():
        if one.type == "tensor(string)":
            yield one.name, np.full([_side(item, side) for item in one.shape], "text", object)
            continue
        kind = _TYPES.get(one.type)
        if kind is None:
            raise ValueError(f"input {one.name!r} is a {one.type}, which cannot be made up")
        shape = [_side(item, side) for item in one.shape]
        if np.prod(shape, dtype=np.float64) > MAX_ELEMENTS:
            raise ValueError(f"input {one.name!r} of {shape} is too large to make up")
        yield one.name, _values(one.name.lower(), np.dtype(kind), shape, most, random)


def _side(item: int | str | None, side: int) -> int:
    if isinstance(item, int):
        return item
    name = (item or "").lower()
    if "batch" in name:
        return 1
    if "past" in name and ("+" in name or "total" in name):
        return PAST + NEW
    if "total" in name:
        return PAST + NEW
    if "past" in name or "cache" in name:
        return PAST
    if "seq" in name and item is not None:
        return NEW if side == SIDES[0] else side
    return side


def _values(name: str, kind: np.dtype[Any], shape: list[int], most: int, random: np.random.Generator) -> NDArray[Any]:
    import numpy as np

    if "mask" in name and kind.kind in "iub":
        return np.ones(shape, kind)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    if kind.kind == "b":
        return np.ones(shape, kind)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=kind) + (PAST if most > 2 else 0), shape).copy()
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, kind)
    if not shape and most > 2 and name in ("sr", "sample_rate", "sampling_rate"):
        return np.asarray(16000, kind)
    return random.integers(0, most, shape).astype(kind)


# --- the user's inputs --------------------------------------------------------------------------------------------


def given_files(path: str) -> list[str]:
    """The files that ``--calibration`` names: one, or all of a directory, in the order of their names."""
    if os.path.isdir(path):
        files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith((".npz", ".npy"))]
        if not files:
            raise UsageError(f"{path} holds no .npz or .npy files", "each .npz is one set of inputs, by the inputs' names")
        return files
    if not path.endswith((".npz", ".npy")):
        raise UsageError(f"{path} is no .npz or .npy file", "numpy.savez(PATH, NAME=array, ...) writes a set of inputs")
    return [path]


def given(path: str, loaded: Session) -> Iterator[Feed]:
    """Sets of inputs from the user's files, one after another: an ``.npz`` has an array for each of the model's inputs, an
    ``.npy`` is for a model of one input. UsageError where they do not fit; nothing in them is unpickled."""
    import numpy as np

    wanted = {one.name: one for one in loaded.get_inputs()}
    for file in given_files(path):
        try:
            data = np.load(file, allow_pickle=False)
            arrays = {next(iter(wanted)): data} if isinstance(data, np.ndarray) else {name: data[name] for name in data.files}
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
        if set(arrays) != set(wanted):
            raise UsageError(
                f"{os.path.basename(file)} has {', '.join(sorted(arrays)) or 'nothing'}, the model takes {', '.join(wanted)}",
                "numpy.savez(PATH, NAME=array, ...) writes a set of inputs",
            )
        for name, array in arrays.items():
            kind = _TYPES.get(wanted[name].type)
            if kind and array.dtype.kind == np.dtype(kind).kind:
                arrays[name] = array.astype(kind)
            elif kind:
                raise UsageError(f"{os.path.basename(file)}: {name} is {array.dtype}, the model takes {wanted[name].type}")
        yield arrays
