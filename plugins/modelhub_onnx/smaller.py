"""Smaller models by onnxruntime's own tools: half precision, INT8 (dynamic, static), weights in blocks of 4 or 8 bits.

Each is a `Program`: it runs in a worker, reads the whole model, and what it made is run beside its source. The tools want room
for files of their own; they get it beside the output, never beside the source.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub import Checkpoint, File, ModelhubError, Program, ProgramResult, Table, UsageError

from modelhub_onnx import compare, running
from modelhub_onnx.graph import TRACKED, parse

if TYPE_CHECKING:
    import onnx

INLINE_LIMIT = 1_900_000_000
"""Bytes of weights from which on a model is written with external data: protobuf's messages end at 2 GiB."""
BLOCK = 32
"""Weights that share a scale in MatMulNBits: as fine as llama.cpp's."""
BASE = 512 << 20
"""What onnx and onnxruntime take by themselves."""

Make = Callable[["onnx.ModelProto", str, compare.Reference, Mapping[str, str]], "list[str]"]


class Way(NamedTuple):
    """A way to make a model smaller. ``copies``: how often the weights are in memory at once, at the most."""

    recipe: str
    title: str
    make: Make
    copies: int
    requires: tuple[str, ...] = ()

    def memory(self, nbytes: int) -> int:
        """Bytes that it may take for weights of ``nbytes``."""
        return BASE + self.copies * nbytes

    def check(self, options: Mapping[str, str]) -> None:
        """UsageError where the user did not say enough."""
        if self.make is _int8_static and not options.get("calibration"):
            raise UsageError("int8-static needs inputs to calibrate with", "--calibration PATH: an .npz, or a directory of such")

    def apply(self, source: str, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
        """Make ``output`` of the model at ``source``. Notes for the user."""
        return self.make(_load(source), output, expected, options)


def ways() -> list[Way]:
    """One for each recipe."""
    blocks = ("onnx_ir",)
    return [
        Way("fp16", "Half precision, inputs and outputs as they are", _fp16, 5),
        Way("int8", "INT8 weights, activations quantized as they come (dynamic)", _int8, 6),
        Way("int8-static", "INT8 weights and activations, calibrated (QDQ)", _int8_static, 6),
        Way("int4", f"INT4 weights in blocks of {BLOCK} (MatMulNBits)", _blocks(4), 4, blocks),
        Way("int8-weights", f"INT8 weights in blocks of {BLOCK} (MatMulNBits)", _blocks(8), 4, blocks),
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
    return ProgramResult(compared=rows, notes=[*notes, f"compared on {whose}"])


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
    """The tools log each node that they pass by."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _load(path: str) -> onnx.ModelProto:
    """The model with its weights. Shapes are inferred before external data is read: inference copies the message."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    load_external_data_for_model(inferred, os.path.dirname(path))
    return inferred


def save(model: onnx.ModelProto, output: str) -> None:
    """One file, or one and its external data where it is too large for that."""
    import onnx

    if model.ByteSize() < INLINE_LIMIT:
        onnx.save(model, output)
    else:
        onnx.save(model, output, save_as_external_data=True, location=f"{os.path.basename(output)}.data")


def _is_large(model: onnx.ModelProto) -> bool:
    return int(model.ByteSize()) >= INLINE_LIMIT


def _fp16(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
    """onnxruntime's own converter: operators that half precision is bad for stay as they are, with casts around them."""
    from onnx import TensorProto, numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    if not floats and not any(node.op_type == "Constant" for node in model.graph.node):
        raise ModelhubError("it has no weights in single precision that could be halved")
    large = {tensor.name: _clipped(numpy_helper.to_array(tensor)) for tensor in floats}
    made = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    save(made, output)
    clipped = {name: count for name, count in large.items() if count}
    if not clipped:
        return []
    first, count = next(iter(clipped)), sum(clipped.values())
    return [
        f"{count} {'weight is' if count == 1 else 'weights are'} too large for half precision and clipped, the first in {first}"
    ]


def _clipped(weights: Any) -> int:
    """How many do not fit half precision. Those at single precision's own end stand for "minus infinity" in masks: they may."""
    import numpy as np

    sizes = np.abs(weights)
    return int(np.count_nonzero((sizes > np.finfo(np.float16).max) & (sizes < 0.99 * np.finfo(np.float32).max)))


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
    _has_quantized(output, "int8-static --calibration quantizes convolutions too")
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
    prepared = tempfile.mkdtemp()
    path = os.path.join(prepared, "prepared.onnx")
    quant_pre_process(
        model, path, skip_symbolic_shape=True, skip_optimization=large, save_as_external_data=large, all_tensors_to_one_file=True
    )
    feeds = running.given(options["calibration"], running.session(path))

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
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=large,
    )
    _has_quantized(output, "")
    return [f"calibrated on {reader.count} set{'s' if reader.count != 1 else ''} of inputs"]


def _blocks(bits: int) -> Make:
    def make_blocks(model: onnx.ModelProto, output: str, expected: compare.Reference, options: Mapping[str, str]) -> list[str]:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]

        large = _is_large(model)
        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=False)
        quantizer.model.replace_gemm_with_matmul()
        quantizer.process()
        quantizer.model.save_model_to_file(output, use_external_data_format=large)
        _has_quantized(output, "only products with constant matrices are")
        return []

    return make_blocks


def _has_quantized(output: str, hint: str) -> None:
    """What the tools leave as it was, they do not mention."""
    with File(output) as file:
        operators = {name.encode() for _, name in parse(file).operators}
    if not operators & TRACKED:
        raise ModelhubError("nothing in this model could be quantized in this way", hint)
