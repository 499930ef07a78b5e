"""TensorFlow for modelhub: checkpoints, SavedModels and graphs are told, shown and read, and checkpoints written, without
TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Conversion, Format, Op, Program, bits, hookimpl

from modelhub_tensorflow import checks, first_version, saved_model
from modelhub_tensorflow.elements import NUMBERS, UNPACK
from modelhub_tensorflow.reader import DATA_SUFFIXES, META, detect, read
from modelhub_tensorflow.writer import create

DTYPES = tuple(name for name in NUMBERS)
_UNPACK = bits.unpack_op(UNPACK)


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="tensorflow",
        title="TensorFlow checkpoint",
        suffixes=(".index", META, *DATA_SUFFIXES),
        dtypes=DTYPES,
        extension=".index",
        sharing="none",
        detect=detect,
        read=read,
        create=create,
    )
    yield Format(
        name="tensorflow-v1",
        title="TensorFlow checkpoint, version 1",
        magics=(first_version.MAGIC,),
        dtypes=DTYPES,
        detect=first_version.detect,
        read=first_version.read,
    )
    yield Format(
        name="savedmodel",
        title="TensorFlow SavedModel",
        suffixes=(saved_model.MODEL,),
        dtypes=DTYPES,
        detect=saved_model.detect,
        detect_directory=saved_model.detect_directory,
        marks=(saved_model.MODEL,),
        reach=saved_model.MAX_DEPTH,
        read=saved_model.read,
    )
    yield Format(
        name="graphdef",
        title="TensorFlow graph",
        suffixes=(".pb", META, ".pbtxt"),
        dtypes=DTYPES,
        detect=saved_model.detect_graph,
        read=saved_model.read_graph,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield _UNPACK


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    files = ("tensorflow", "savedmodel", "graphdef", "tensorflow-v1")
    yield Check(
        name=checks.CHECKSUMS, level="values", formats=("tensorflow", "savedmodel", "tensorflow-v1"), run=checks.checksums
    )
    yield Check(name=checks.CUSTOM, level="safety", formats=files, run=checks.custom)


@hookimpl
def modelhub_conversions() -> Iterator[Conversion | Program]:
    from modelhub_tensorflow import to_checkpoint, to_huggingface, to_onnx

    yield from to_huggingface.CONVERSIONS
    yield from to_checkpoint.CONVERSIONS
    yield to_onnx.program()
