"""How far what a recipe packed is from its source: measured on the output as its own reader puts it together again.

Of a weight that is stored as several tensors (words beside scales), none can be held against the source by itself. Their reader
makes one tensor of them, and the op that made the parts has the source as its first input: these two are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from modelhub import dtypes, ops
from modelhub.codecs import find
from modelhub.compare import measure_difference
from modelhub.engine.errors import ErrorSums
from modelhub.engine.values import Handles
from modelhub.errors import VerificationError
from modelhub.table import Table
from modelhub.types import Extent, Node, Tensor

FAR = 0.8
"""Relative error that no rounding comes to: the norm of what is wrong, over the norm of the source."""


def packed_pairs(wanted: Mapping[str, Tensor], read: Table) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(the largest part, the source, the whole as it reads back) of every weight that was packed."""
    names = {tensor.value: tensor.name for tensor in read.stored if isinstance(tensor.value, Extent)}
    for whole in read.logical:
        if whole.view != "logical" or not isinstance(whole.value, Node):
            continue
        places = sorted(ops.extents(whole.value), key=lambda place: place.nbytes, reverse=True)
        for name in (names.get(place, "") for place in places):
            value = wanted[name].value if name in wanted else None
            if not isinstance(value, Node) or not value.inputs:
                continue
            dtype, shape = ops.spec(value.inputs[0])
            if shape == whole.shape and dtypes.get(dtype).kind == "float" and 0 not in shape:
                yield name, Tensor(whole.name, dtype, shape, value.inputs[0]), whole
                break


def measure_packed(wanted: Mapping[str, Tensor], read: Table, threads: int | None = None) -> dict[str, ErrorSums]:
    """By the names of their largest parts, how far packed weights are from their sources. `VerificationError` for one that is
    something else altogether: it was packed in one way, and is read in another."""
    pairs = [pair for pair in packed_pairs(wanted, read) if find(pair[1].dtype) and find(pair[2].dtype)]
    found: dict[str, ErrorSums] = {}
    with Handles() as handles, ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        sums = pool.map(lambda pair: measure_difference(pair[1], pair[2], handles), pairs)
        for (name, source, _), errors in zip(pairs, sums, strict=True):
            if errors.relative > FAR:
                raise VerificationError(
                    f"tensor {source.name} reads back with a relative error of {errors.relative:.2g}: it was packed otherwise "
                    "than it is read",
                    "please report this",
                )
            found[name] = errors
        handles.check_unchanged()
    return found
