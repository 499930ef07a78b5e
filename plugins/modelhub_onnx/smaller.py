"""Smaller models by onnxruntime's own tools: half precision, INT8 (dynamic, static), weights in blocks of 4 or 8 bits.

Each is a `Program`: it runs in a worker, reads the whole model, and what it made is run beside its source. The tools want room
for files of their own; they get it beside the output, never beside the source.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub import Checkpoint, File, ModelhubError, Program, ProgramResult, Table, UsageError

from modelhub_onnx import compare, given, prepared, running
from modelhub_onnx.graph import TRACKED, parse

if TYPE_CHECKING:
    import onnx

INLINE_LIMIT = 1_900_000_000
"""Bytes of weights from which on a model is written with external data: protobuf's messages end at 2 GiB."""
BLOCK = 32
"""Weights that share a scale in MatMulNBits: as fine as llama.cpp's."""
HARDLY = 0.9
"""Share of its source's bytes from which on a quantized model is not what the user will have hoped for."""
CHANNELS = 13
"""The operator set from which on ``DequantizeLinear`` has scales per channel."""
BASE = 512 << 20
"""What onnx and onnxruntime take by themselves."""

Make = Callable[["onnx.ModelProto", str, compare.Reference, Mapping[str, str]], "list[str]"]


class Way(NamedTuple):
    """A way to make a model smaller. ``copies``: how often the weights are in memory at once, as measured on 2.3 GB of them.
    ``otherwise``: what to do where it finds nothing to quantize."""

    recipe: str
    title: str
    make: Make
    copies: int
    requires: tuple[str, ...] = ()
    otherwise: str = ""

    def memory(self, nbytes: int) -> int:
        """Bytes that it may take for weights of ``nbytes``."""
        return BASE + self.copies * nbytes

    def check(self, options: Mapping[str, str]) -> None:
        """UsageError where the user did not say enough."""
        if self.make is _int8_static and not options.get("calibration"):
            raise UsageError("int8-static needs inputs to calibrate with", "--calibration PATH: an .npz, or a directory of such")

    def apply(self, source: str, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
        """Make ``output`` of the model at ``source``. Notes for the user. ModelhubError where the tools changed nothing, which
        they do not mention."""
        before = _quantized(source)
        try:
            notes = self.make(_load(source), output, expected, options)
        except (ModelhubError, MemoryError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            hint = "it is quantized already: make it of the model that this was made of" if before else self.otherwise
            raise ModelhubError(
                f"onnxruntime's tool for {self.recipe} does not get through with this model: {what}", hint
            ) from error
        if self.make is not _fp16 and _quantized(output) <= before:
            what = "this model is quantized already, and nothing more of it" if before else "nothing in this model"
            raise ModelhubError(f"{what} could be quantized in this way", self.otherwise)
        if self.make is not _fp16 and _nbytes(output) > HARDLY * _nbytes(source):
            few = "hardly smaller than its source: few of its weights are such as this way quantizes"
            notes.append(f"{few}; {self.otherwise}" if self.otherwise else few)
        return notes


def ways() -> list[Way]:
    """One for each recipe."""
    blocks, products = ("onnx_ir",), "only products with constant matrices are"
    convolutions = "int8-static --calibration quantizes convolutions too"
    return [
        Way("fp16", "Half precision, inputs and outputs as they are", _fp16, 3),
        Way("int8", "INT8 weights, activations quantized as they come (dynamic)", _int8, 5, otherwise=convolutions),
        Way("int8-static", "INT8 weights and activations, calibrated (QDQ)", _int8_static, 6),
        Way("int4", f"INT4 weights in blocks of {BLOCK} (MatMulNBits)", _blocks(4), 3, blocks, products),
        Way("int8-weights", f"INT8 weights in blocks of {BLOCK} (MatMulNBits)", _blocks(8), 3, blocks, products),
    ]


def programs() -> Iterator[Program]:
    """From ONNX to ONNX, one for each way."""
    for way in ways():
        yield Program(
            name=f"onnxruntime-{way.recipe}",
            source="onnx",
            target="onnx",
            run=partial(_run, way),
            requires=("onnx", "onnxruntime", *way.requires),
            memory_estimate=partial(_memory, way),
            recipe=way.recipe,
            title=way.title,
            extra="onnx",
            options=("calibration", "atol", "rtol"),
        )


def _memory(way: Way, table: Table) -> int:
    return way.memory(table.nbytes)


def _run(way: Way, checkpoint: Checkpoint, output: str, options: Mapping[str, str]) -> ProgramResult:
    notes: list[str] = []
    way.check(options)

    def work(expected: compare.Reference) -> str:
        with own_temporary_files(os.path.dirname(output)), quiet():
            notes.extend(way.apply(checkpoint.primary.path, output, expected, options))
        return output

    rows, whose = compare.checked(checkpoint.primary.path, options, work)
    return ProgramResult(compared=rows, notes=[*notes, *compare.doubts(rows, options), f"compared on {whose}"])


@contextmanager
def own_temporary_files(directory: str) -> Iterator[None]:
    """The tools write whole models to temporary files: where the output goes there is room, and elsewhere perhaps not."""
    place = tempfile.mkdtemp(prefix=".work-", dir=directory)
    before, tempfile.tempdir = tempfile.tempdir, place
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """The tools log each node that they pass by, onnxruntime shapes that it did not expect, and numpy what they divide by."""
    import onnxruntime  # type: ignore[import-untyped]

    onnxruntime.set_default_logger_severity(4)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _load(path: str) -> onnx.ModelProto:
    """The model with its weights, its own functions written out where they are called, weights in nodes of their own among the
    initializers: that is where the tools look. Shapes are inferred before external data is read: inference copies the message."""
    import onnx
    import onnx.inliner
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(path, load_external_data=False)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    prepared.lift_constants(inferred)
    prepared.name_apart(inferred)
    load_external_data_for_model(inferred, os.path.dirname(path))
    return inferred


def save(model: onnx.ModelProto, output: str) -> None:
    """One file, or one and its external data where it is too large for that."""
    import onnx

    if _is_large(model):
        onnx.save(model, output, save_as_external_data=True, location=f"{os.path.basename(output)}.data")
    else:
        onnx.save(model, output)


def _is_large(model: onnx.ModelProto) -> bool:
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    try:
        return int(model.ByteSize()) >= INLINE_LIMIT
    except (EncodeError, ValueError):  # past 2 GiB it cannot be said
        return True


def _fp16(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
    """onnxruntime's own converter: operators that half precision is bad for, or whose weights it cannot hold, stay as they are,
    with casts around them."""
    from onnx import TensorProto, numpy_helper
    from onnxruntime.transformers import float16  # type: ignore[import-untyped]

    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    if not floats and not any(node.op_type == "Constant" for node in model.graph.node):
        raise ModelhubError("it has no weights in single precision that could be halved")
    large = {tensor.name for tensor in floats if _too_large(numpy_helper.to_array(tensor))}
    single = {tensor.name for tensor in floats if tensor.name in large and prod(tensor.dims) < 2}
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"  # the converter goes by names
    kept = [node.name for node in model.graph.node if large.difference(single).intersection(node.input)]
    quantizing = [name.decode() for name in TRACKED]  # they take single precision
    made = float16.convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *quantizing],
        node_block_list=kept,
    )
    save(made, output)
    notes = []
    if kept:
        nodes = f"{len(kept)} node{'s keep' if len(kept) > 1 else ' keeps'} single precision"
        notes.append(f"{nodes}, with weights too large for half: {kept[0]}{' and others' if len(kept) > 1 else ''}")
    if single:
        first = min(single)
        constants = f"{len(single)} constants are" if len(single) > 1 else "1 constant is"
        notes.append(f"{constants} too large for half precision and clipped, the first {first}")
    return notes


def _too_large(weights: Any) -> bool:
    """Does one not fit half precision? Those at single precision's own end stand for "infinity" in masks and limits: they may."""
    import numpy as np

    sizes = np.abs(weights)
    return bool(((sizes > np.finfo(np.float16).max) & (sizes < 0.99 * np.finfo(np.float32).max)).any())


def _int8(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
    from onnxruntime.quantization.registry import IntegerOpsRegistry  # type: ignore[import-untyped]

    # Convolutions stay floats: onnxruntime has no kernel for ConvInteger with signed weights, and they lose more than they gain.
    kinds = [kind for kind in IntegerOpsRegistry if kind != "Conv"]
    large = _is_large(model)
    quantize_dynamic(
        model,
        output,
        op_types_to_quantize=kinds,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
        extra_options={"EnableSubgraph": True},
    )
    return []


def _int8_static(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    large = _is_large(model)
    model, per_channel, notes = _for_channels(model)
    plain, path = (os.path.join(tempfile.mkdtemp(), f"{name}.onnx") for name in ("plain", "prepared"))
    save(model, plain)  # a path: of a model in memory the tool makes a file that onnxruntime does not always load
    prepare = partial(
        quant_pre_process, plain, path, skip_symbolic_shape=True, save_as_external_data=large, all_tensors_to_one_file=True
    )
    try:
        prepare(skip_optimization=large)
    except Exception:  # noqa: BLE001 - a step that only helps; onnxruntime's exceptions have no common type of their own
        prepare(skip_optimization=True)
    prepared.own_biases(path)
    feeds = given.read(options["calibration"], running.session(path))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        count = 0

        def get_next(self) -> Any:
            feed = next(feeds, None)
            self.count += feed is not None
            return feed

    reader = Reader()
    quantize_static(
        path,
        output,
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=large,
    )
    return [*notes, f"calibrated on {reader.count} set{'s' if reader.count != 1 else ''} of inputs"]


def _for_channels(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool, list[str]]:
    """The model in an operator set whose scales can be per channel (13 and on), whether it is, and notes."""
    from onnx import version_converter

    have = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), CHANNELS)
    if have >= CHANNELS:
        return model, True, []
    try:
        return version_converter.convert_version(model, CHANNELS), True, [f"brought from operator set {have} to {CHANNELS}"]
    except Exception:  # noqa: BLE001 - onnx raises what its C++ raises
        return (
            model,
            False,
            [f"one scale a tensor: operator set {have} has none per channel, and the model cannot be brought to {CHANNELS}"],
        )


def _blocks(bits: int) -> Make:
    def make_blocks(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]

        large = _is_large(model)
        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=False)
        quantizer.model.replace_gemm_with_matmul()
        quantizer.process()
        quantizer.model.save_model_to_file(output, use_external_data_format=large)
        return []

    return make_blocks


def _nbytes(path: str) -> int:
    """Of a model's file and of its external data."""
    with File(path) as file:
        return file.size + sum(parse(file).externals.files.values())


def _quantized(path: str) -> int:
    """Nodes that say how a model is quantized."""
    with File(path) as file:
        return sum(count for (_, name), count in parse(file).operators.items() if name.encode() in TRACKED)
