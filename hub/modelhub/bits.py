"""Integers of less than a byte, packed one behind the other from each byte's low bits on and over the ends of rows: the op that
makes bytes of them. Formats that pack so register it under a name of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub.declared import Op
from modelhub.storage_ops import Spec, Specs
from modelhub.types import Args

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unpack_op(name: str) -> Op:
    """The op ``name``: U8 (bytes,) to U8 or I8 ``shape``. Arguments: ``bits`` (2 or 4), ``signed`` (two's complement), ``shape``.
    ValueError where the bytes are not as many as those elements take."""

    def infer(inputs: Specs, args: Args) -> Spec:
        bits, shape = args["bits"], tuple(args["shape"])
        if bits not in (2, 4) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name}: {bits} bits, {list(shape)}")
        if len(inputs) != 1 or inputs[0] != ("U8", (-(-prod(shape) * bits // 8),)):
            raise ValueError(f"{name}: {list(shape)} of {bits} bits do not fit {list(inputs)}")
        return "I8" if args["signed"] else "U8", shape

    return Op(name=name, rows=_rows, infer=infer, needs=_needs)


def unpack(source: Any, bits: int, first: int, last: int, *, signed: bool = False) -> NDArray[Any]:
    """Elements ``first``..``last`` of what ``source``, a run of bytes, holds packed: uint8, or int8 where they are ``signed``."""
    import numpy as np

    each = 8 // bits
    data = source.read(first // each, -(-last // each))
    parts = np.stack([data >> (bits * number) & ((1 << bits) - 1) for number in range(each)], axis=-1).reshape(-1)
    values: NDArray[Any] = parts[first % each : first % each + last - first]
    return (values.astype(np.int8) << (8 - bits)) >> (8 - bits) if signed else values


def _rows(sources: Sequence[Any], args: Args, start: int, stop: int) -> Any:
    shape = tuple(args["shape"])
    row = prod(shape[1:])
    values = unpack(sources[0], args["bits"], start * row, stop * row, signed=args["signed"])
    return values.reshape((stop - start, *shape[1:]) if shape else ())


def _needs(inputs: Specs, args: Args, start: int, stop: int) -> Sequence[tuple[int, int]]:
    row, each = prod(args["shape"][1:]), 8 // args["bits"]
    return [(start * row // each, -(-stop * row // each))]
