"""NumPy's arrays in a pickle that is not run.

(NumPy ``core/src/multiarray/methods.c``: an array is ``_reconstruct(ndarray, (0,), b"b")`` with a state of version, shape, dtype,
whether it is in Fortran order, and bytes; a dtype is ``dtype("f4", False, True)`` whose state's second entry is its byte order;
protocol 5 has ``_frombuffer(bytes, dtype, shape, order)``, a scalar is ``scalar(dtype, bytes)``.)
"""

from __future__ import annotations

from math import prod
from typing import Any

from modelhub import Extent, File, Inline, InvalidFile, Tensor, dtypes, ops, pickles

from modelhub_paddle.elements import NUMPY

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
INNOCENT = {
    *((module, name) for module in MULTIARRAY for name in ("_reconstruct", "scalar")),
    *((module, "_frombuffer") for module in NUMERIC),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"), ("builtins", "tuple"),
    ("__builtin__", "tuple"), ("builtins", "list"), ("builtins", "set"), ("builtins", "bytearray"),
}  # fmt: skip
"""Globals that Paddle's own checkpoints name: loading them makes data, and does nothing."""
MAX_SIDES = 64


def is_call(value: Any, modules: tuple[str, ...], name: str) -> bool:
    made = value.function if isinstance(value, pickles.Call) else None
    return isinstance(made, pickles.Global) and made.module in modules and made.name == name


def tensor(name: str, value: Any, file: File) -> Tensor | None:
    """``value`` as a record where it is an array; None where it is something else."""
    match value:
        case pickles.Call(state=(_, shape, kind, fortran, data)) if is_call(value, MULTIARRAY, "_reconstruct"):
            pass
        case pickles.Call(args=(data, kind, shape, order)) if is_call(value, NUMERIC, "_frombuffer"):
            fortran = order == "F"
        case pickles.Call(args=(kind, data)) if is_call(value, MULTIARRAY, "scalar"):
            shape, fortran = (), False
        case _:
            return None
    where = f"{file.name}: {name!r:.200}"
    shape = sides(shape, where)
    descr, order = _kind(kind, where)
    dtype = NUMPY.get(descr, "")
    if not dtype:
        return Tensor(name, descr[:40], shape, None, unsupported=f"array of NumPy type {descr:.40}")
    nbytes = dtypes.get(dtype).nbytes(shape)
    run = _bytes(data, nbytes, file, where)
    if order == ">" and dtypes.get(dtype).block_bytes > 1:
        run = ops.byteswap(run, dtype, shape)
    if fortran and len(shape) > 1:
        run = ops.strided(run, dtype, shape, [prod(shape[:axis]) for axis in range(len(shape))])
    return Tensor(name, dtype, shape, run)


def sides(shape: Any, where: str) -> tuple[int, ...]:
    """``shape``, where it is one. What else it may be is not shown: it may be without an end."""
    if type(shape) is not tuple or len(shape) > MAX_SIDES or not all(type(side) is int and 0 <= side < 1 << 60 for side in shape):
        raise InvalidFile(f"{where} has a shape that is none, up to {MAX_SIDES} whole numbers from 0 up were expected")
    return shape


def _kind(kind: Any, where: str) -> tuple[str, str]:
    """(NumPy's word for a dtype, its byte order)."""
    if not (isinstance(kind, pickles.Call) and kind.function == ("numpy", "dtype") and type(kind.args) is tuple and kind.args):
        raise InvalidFile(f"{where} has no dtype")
    name = kind.args[0]
    state = kind.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "|"
    if not isinstance(name, str) or not isinstance(order, str):
        raise InvalidFile(f"{where} has a dtype that is none")
    return name.lstrip("<>|="), order


def _bytes(data: Any, nbytes: int, file: File, where: str) -> Any:
    """An array's bytes: a run of the file, or text that was bytes once."""
    if isinstance(data, pickles.Call) and data.function == ("_codecs", "encode") and type(data.args) is tuple and data.args:
        data = data.args[0]
        if isinstance(data, pickles.Run) and data.text:
            if not nbytes <= data.nbytes <= 2 * nbytes:
                raise InvalidFile(f"{where} takes {nbytes} bytes, a text of {data.nbytes} has others")
            return ops.node("paddle.latin", Extent(file.path, data.start, data.nbytes), nbytes=nbytes)
        if isinstance(data, str):
            try:
                data = data.encode("latin-1")
            except UnicodeError:
                raise InvalidFile(f"{where}: its bytes are no bytes") from None
    if isinstance(data, str):  # Python 2's strings are bytes
        data = data.encode("utf-8", "surrogatepass")
    have = data.nbytes if isinstance(data, pickles.Run) else len(data) if isinstance(data, bytes) else -1
    if have != nbytes:
        raise InvalidFile(f"{where} takes {nbytes} bytes, {have if have >= 0 else 'something else'} is there")
    return Extent(file.path, data.start, data.nbytes) if isinstance(data, pickles.Run) else Inline(data)
