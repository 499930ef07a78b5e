"""Runs a model with onnxruntime, on inputs that are given.

In a worker only: onnxruntime reads the weights and starts threads. Outputs are kept, so that two models can be held against each
other; nothing here says how far apart is too far.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub import File

from modelhub_onnx.describe import RUNTIMES, STANDARD, custom_domains, whose
from modelhub_onnx.graph import parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Feed = Mapping[str, "NDArray[Any] | list[NDArray[Any]]"]

Session = Any
"""An ``onnxruntime.InferenceSession``, which has no types to check."""

_NUMPY = {
    "float": "<f4", "float16": "<f2", "double": "<f8", "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "|i1",
    "uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "|b1", "string": "O",
}  # fmt: skip
_NARROW = {
    "bfloat16": ("bfloat16", 16), "float8e4m3fn": ("float8_e4m3fn", 17), "float8e4m3fnuz": ("float8_e4m3fnuz", 18),
    "float8e5m2": ("float8_e5m2", 19), "float8e5m2fnuz": ("float8_e5m2fnuz", 20),
}  # fmt: skip
"""Types that NumPy has not, and onnxruntime passes as values of its own -> (ml_dtypes' name, onnx's ``TensorProto.DataType``)."""
_TYPE = re.compile(r"(?:optional\()?(seq\()?tensor\((\w+)\)\)*")


class Kind(NamedTuple):
    """What an input or output holds: elements of a ``dtype``, in one tensor or in a list of such. ``narrow``: onnx's number of a
    type that NumPy has not, or 0."""

    dtype: np.dtype[Any]
    is_list: bool
    narrow: int = 0


def kind_of(declared: str) -> Kind | None:
    """The kind of an input or output, by its type as onnxruntime writes it (``seq(tensor(float))``); None for maps, and for what
    NumPy has no like of."""
    import numpy as np

    match = _TYPE.fullmatch(declared)
    if not match:
        return None
    is_list, name = bool(match[1]), match[2]
    if name in _NUMPY:
        return Kind(np.dtype(_NUMPY[name]), is_list)
    if name in _NARROW and not is_list:
        import ml_dtypes

        called, number = _NARROW[name]
        return Kind(np.dtype(getattr(ml_dtypes, called)), is_list, number)
    return None


def session(path: str) -> Session:
    """The model at ``path``, loaded for the processor. What onnxruntime raises is the model's own trouble."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def words(error: Exception) -> str:
    """What onnxruntime says, in one line."""
    return " ".join(str(error).split())[:500]


def not_here(path: str, error: Exception) -> str:
    """What this machine or this onnxruntime lacks to load the model at ``path``, where that is the reason for the ``error``; ""
    where the model itself is to blame."""
    import onnxruntime

    said, ours = words(error), f"onnxruntime {onnxruntime.__version__}"
    with File(path) as file:
        model = parse(file)
    foreign = next((domain for domain in custom_domains(model) if domain not in RUNTIMES and domain in said), "")
    if foreign:
        return f"its operators of {foreign[:200]!r} take {whose(foreign)}, and none is loaded here ({ours}: {said})"
    unknown = "is not a registered function/op" in said and any(f"{domain}:" in said for domain in STANDARD if domain)
    unsupported = "Exception during initialization" in said and "not supported" in said
    if "NOT_IMPLEMENTED" in said or unknown or unsupported:
        return f"{ours} has no code for one of its operators: {said}"
    if "Failed to construct locale" in said:
        return f"the system has not the locale that it asks for: {said}"
    return ""


def run(loaded: Session, feeds: Sequence[Feed]) -> list[list[Any]]:
    """The outputs for each feed, in the order that the model declares them; numbers of types that NumPy has not are widened to
    single precision."""
    if not any(_is_strange(one.type) for one in (*loaded.get_inputs(), *loaded.get_outputs())):
        return [loaded.run(None, dict(feed)) for feed in feeds]
    return [
        [_array(value) for value in loaded.run_with_ort_values(None, {name: _value(array) for name, array in feed.items()})]
        for feed in feeds
    ]


def _is_strange(declared: str) -> bool:
    """Whether it is a tensor of a type that NumPy has not."""
    kind = kind_of(declared)
    return declared.startswith("tensor(") and (kind is None or kind.narrow > 0)


def _value(array: Any) -> Any:
    """An array as one of onnxruntime's values."""
    import onnxruntime

    number = next((number for name, number in _NARROW.values() if array.dtype.name == name), 0)
    if number:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, number)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> Any:
    """The array in one of onnxruntime's values; the value itself where it has no like in NumPy."""
    import numpy as np

    kind = kind_of(value.data_type())
    if not kind or kind.is_list:
        return value
    if not kind.narrow:
        return value.numpy()
    shape = value.shape()
    data = ctypes.string_at(value.data_ptr(), prod(shape) * kind.dtype.itemsize)
    return np.frombuffer(data, kind.dtype).reshape(shape).astype(np.float32)


def described(feed: Feed) -> str:
    """The inputs and their sides: ``x[1, 3, 64, 64]``; a list's are those of its first element."""
    sides = {name: [len(item), *item[0].shape] if isinstance(item, list) else [*item.shape] for name, item in feed.items()}
    return ", ".join(f"{name}{shape}" for name, shape in sides.items())[:300] or "no inputs: it takes none"
