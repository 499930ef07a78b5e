"""Orbax checkpoints for modelhub: JAX's trees of arrays, in TensorStore's OCDBT database or in a directory each, zarr 2 or 3.

Neither jax nor tensorstore is needed. Nearly all of what Orbax writes is compressed by Zstandard, for which Python has a library
of its own only since 3.14: the extra ``orbax`` brings one.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, Op, hookimpl

from modelhub_orbax import zstd
from modelhub_orbax.elements import DTYPES
from modelhub_orbax.layout import MARKS, REACH, detect_directory
from modelhub_orbax.reader import read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="orbax",
        title="Orbax checkpoint",
        dtypes=tuple(dict.fromkeys(DTYPES.values())),
        sharing="any",
        detect_directory=detect_directory,
        marks=MARKS,
        reach=REACH,
        read=read,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield zstd.OP
