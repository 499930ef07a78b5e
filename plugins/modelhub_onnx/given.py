"""Inputs from the user's files, checked against what a model declares; nothing in them is unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelhub import UsageError

from modelhub_onnx import running

if TYPE_CHECKING:
    from modelhub_onnx.running import Feed, Session


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


def read(path: str, loaded: Session) -> Iterator[Feed]:
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

    kind = running.kind_of(wanted.type)
    if kind is None:
        raise UsageError(f"{who}: the model takes a {wanted.type}, which no file of NumPy's holds")
    expected = {"O": "U", "V": "f"}.get(kind.dtype.kind, kind.dtype.kind)
    if array.dtype.kind != expected:
        raise UsageError(f"{who} is {array.dtype}, the model takes {wanted.type}")
    if kind.is_list:  # the tensors of a list are rows of one array
        if not array.ndim or not len(array):
            raise UsageError(f"{who} has the shape {list(array.shape)}, the model takes a list of tensors: stack them")
        return [np.ascontiguousarray(row, kind.dtype) for row in array]
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
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{who} has NaN or infinite values")
    return array.astype(kind.dtype)
