"""Keras for modelhub: whole models and weights in HDF5, and ``.keras`` archives, read without Keras or h5py.

What a model's configuration would run when it is loaded is named, never decoded. HDF5 files of others are read as well, by the
paths of their datasets.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, hookimpl

from modelhub_keras import checks, config, container, lzf, quantized, saved_models
from modelhub_keras.reader import HDF5_SUFFIXES, SUFFIXES, detect, detect_plain, read

DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64",
    "C128",
)  # fmt: skip


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="keras",
        title="Keras",
        suffixes=SUFFIXES,
        magics=(container.MAGIC,),
        dtypes=DTYPES,
        extension=".keras",
        sharing="exact",
        detect=detect,
        read=read,
    )
    yield Format(
        name="hdf5",
        title="HDF5",
        suffixes=HDF5_SUFFIXES,
        dtypes=DTYPES,
        extension=".h5",
        sharing="exact",
        detect=detect_plain,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.CUSTOM, level="safety", formats=("keras",), run=checks.custom)
    yield Check(name=config.CHECK, level="safety", formats=("savedmodel",), run=saved_models.code)
    yield Check(name=checks.CRC, level="values", formats=("keras",), run=checks.crc)


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from quantized.OPS
    yield from lzf.OPS
