"""Runs a model with onnxruntime: on inputs that are made up from what it declares, or on the user's.

In a worker only: onnxruntime reads the weights and starts threads. Outputs are kept, so that two models can be held against each
other; nothing here says how far apart is too far.
"""

from __future__ import annotations

import os
import zipfile
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
IMAGE_SIDES = (64, 224, 320, 48, 512, 256, 8, 1)
"""The same, for models whose inputs have an image's four dimensions."""
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
    """Inputs that the model takes, made up: the first guess at its open sides that runs and gives something else than nothing and
    zeros, or the first that runs. ValueError with onnxruntime's first words where none does, or where an input is nothing that
    can be made up."""
    said = ""
    seen: set[str] = set()
    second: list[Feed] = []
    for side in IMAGE_SIDES if any(len(one.shape) == 4 for one in loaded.get_inputs()) else SIDES:
        for most in (97, 2):
            try:
                feeds: list[Feed] = [dict(invented(loaded, side, most, seed)) for seed in range(count)]
            except _TooLarge as error:
                said = said or str(error)
                continue
            key = str([(name, array.shape, most if array.dtype.kind in "iu" else 0) for name, array in feeds[0].items()])
            if key in seen:
                continue
            seen.add(key)
            try:
                outputs = loaded.run(None, feeds[0])
            except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common type of their own
                said = said or str(error).strip().splitlines()[0][:300]
                continue
            if _tell(outputs):
                return feeds
            second = second or feeds
    if second:
        return second
    raise ValueError(said or "it takes no inputs that can be made up")


class _TooLarge(ValueError):
    """A guess at the open sides that comes to too many elements."""


def _tell(outputs: Sequence[Any]) -> bool:
    """Is there an output by which two models could be told apart: a number that is not zero?"""
    return any(getattr(one, "size", 0) and (one.dtype.kind not in "biuf" or one.any()) for one in outputs)


def described(feed: Feed) -> str:
    """The inputs and their sides: ``x[1, 3, 64, 64]``."""
    return ", ".join(f"{name}{list(array.shape)}" for name, array in feed.items())[:300]


def invented(loaded: Session, side: int, most: int, seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """A value for each input. Floats are normal, numbers are below ``most``; masks, positions and sides are told by their names,
    as exporters give them."""
    import numpy as np

    random = np.random.default_rng(seed)
    for one in loaded.get_inputs():
        if one.type == "tensor(string)":
            yield one.name, np.full(_shape(one.shape, side), "text", object)
            continue
        kind = _TYPES.get(one.type)
        if kind is None:
            raise ValueError(f"input {one.name!r} is a {one.type}, which cannot be made up")
        shape = _shape(one.shape, side)
        if np.prod(shape, dtype=np.float64) > MAX_ELEMENTS:
            raise _TooLarge(f"input {one.name!r} of {shape} is too large to make up")
        if "len" in one.name.lower() and np.dtype(kind).kind in "iu" and len(shape) < 2 and most > 2:
            yield one.name, np.full(shape, side, kind)  # of what comes beside it: all of it
        else:
            yield one.name, _values(one.name.lower(), np.dtype(kind), shape, most, random)


def _shape(sides: Sequence[int | str | None], side: int) -> list[int]:
    first = [1] if len(sides) == 4 and not isinstance(sides[0], int) else []  # of images one is enough
    return first + [_side(item, side) for item in sides[len(first) :]]


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

    wanted = {one.name: one for one in loaded.get_inputs()}
    for file in given_files(path):
        name = os.path.basename(file)
        arrays = _arrays(file, next(iter(wanted), ""))
        if set(arrays) != set(wanted):
            raise UsageError(
                f"{name} has {', '.join(sorted(arrays)) or 'nothing'}, the model takes {', '.join(wanted)}",
                "numpy.savez(PATH, NAME=array, ...) writes a set of inputs",
            )
        yield {key: _fitting(f"{name}: {key}", array, wanted[key]) for key, array in arrays.items()}


def _arrays(file: str, only: str) -> dict[str, Any]:
    """The arrays in a file; that of an ``.npy`` is for the input called ``only``."""
    import numpy as np

    with open(file, "rb") as start:
        if not start.read(6).startswith((b"PK\3\4", b"\x93NUMPY")):
            raise UsageError(f"{file} is no file of NumPy's", "numpy.savez(PATH, NAME=array, ...) writes a set of inputs")
    try:
        data = np.load(file, allow_pickle=False)
        return {only: data} if isinstance(data, np.ndarray) else {key: data[key] for key in data.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def _fitting(who: str, array: Any, wanted: Any) -> Any:
    """An array as the model's input takes it: of another width, perhaps, but of the same kind and shape."""
    import numpy as np

    kind = _TYPES.get(wanted.type)
    if kind and array.dtype.kind != np.dtype(kind).kind:
        raise UsageError(f"{who} is {array.dtype}, the model takes {wanted.type}")
    sides = list(getattr(wanted, "shape", None) or array.shape)
    if len(sides) != array.ndim or any(
        isinstance(side, int) and side != have for side, have in zip(sides, array.shape, strict=True)
    ):
        shape = ", ".join(str(side or "?") for side in sides)
        more = len(sides) + 1 == array.ndim
        raise UsageError(
            f"{who} has the shape {list(array.shape)}, the model takes [{shape}]",
            "each file is one set of inputs" if more else "",
        )
    return array.astype(kind) if kind else array
