"""Weights in blocks, and integers behind operators on integers: they are read as what onnxruntime computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from modelhub import plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.plugins.onnx_files import model_of, save

RANDOM = np.random.default_rng(0)


def whole(path: Path, name: str) -> NDArray[Any]:
    """The tensor that is meant, as it would be converted."""
    found = inspect_path(str(path), plugins.get().formats)
    assert found.state == "ready", found.reason
    tensor = found.load_table().by_name[name]
    assert tensor.dtype == "F32"
    return read_tensor(tensor).view("<f4").reshape(tensor.shape)


def one_node(path: Path, operator: str, parts: dict[str, NDArray[Any]], shape: list[int], **numbers: int) -> None:
    """A model of one product of ``x`` and packed weights."""
    node = helper.make_node(operator, ["x", *parts], ["y"], domain="com.microsoft", **numbers)
    tensors = [numpy_helper.from_array(array, name) for name, array in parts.items()]
    model = model_of([node], tensors, {"x": ["n", shape[0]]}, {"y": ["n", shape[1]]}, domains={"com.microsoft": 1})
    save(model, path)


def run(path: Path, **feed: Any) -> NDArray[Any]:
    return onnxruntime.InferenceSession(path).run(None, feed)[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "floats"])
def test_the_blocks_of_a_product(tmp_path: Path, bits: int, zeros: str) -> None:
    """Times the identity matrix a weight is itself; 40 columns do not fill two blocks of 32."""
    rows, columns, block = 5, 40, 32
    parts = {
        "w_Q4": RANDOM.integers(0, 256, (rows, 2, block * bits // 8), np.uint8),
        "w_scales": RANDOM.random((rows, 2)).astype(np.float32),
    }
    if zeros == "packed":
        parts["w_zero_points"] = RANDOM.integers(0, 256, (rows, -(-2 * bits // 8)), np.uint8)
    elif zeros == "floats":
        parts["w_zero_points"] = (RANDOM.random((rows, 2)) * 3).astype(np.float32)
    one_node(tmp_path / "m.onnx", "MatMulNBits", parts, [columns, rows], K=columns, N=rows, bits=bits, block_size=block)
    got = whole(tmp_path / "m.onnx", "w")
    assert got.shape == (columns, rows)
    if (bits, zeros) == (8, "floats"):  # onnxruntime has no code for it on a processor
        values = parts["w_Q4"].astype(np.float32) - parts["w_zero_points"][:, :, None]
        want = (values * parts["w_scales"][:, :, None]).reshape(rows, -1)[:, :columns].T
    else:
        want = run(tmp_path / "m.onnx", x=np.eye(columns, dtype=np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [0, 1], ids=["FP4", "NF4"])
@pytest.mark.parametrize("columns", [48, 33])
def test_four_bits_of_bitsandbytes(tmp_path: Path, kind: int, columns: int) -> None:
    rows, block = 6, 16
    count = rows * columns
    parts = {
        "w_Bnb4": RANDOM.integers(0, 256, -(-count // 2), np.uint8),
        "w_absmax": RANDOM.random(-(-count // block)).astype(np.float32),
    }
    one_node(tmp_path / "m.onnx", "MatMulBnb4", parts, [columns, rows], K=columns, N=rows, block_size=block, quant_type=kind)
    want = run(tmp_path / "m.onnx", x=np.eye(columns, dtype=np.float32))
    np.testing.assert_allclose(whole(tmp_path / "m.onnx", "w"), want, rtol=1e-6)
    found = inspect_path(str(tmp_path / "m.onnx"), plugins.get().formats)
    assert (found.precision, found.parameters) == (("NF4" if kind else "FP4"), count)


@pytest.mark.parametrize("case", ["bytes", "bytes with zero points", "INT4", "UINT4 with zero points"])
def test_a_table_that_is_looked_up(tmp_path: Path, case: str) -> None:
    rows, columns, block = 7, 64, 16
    scale = numpy_helper.from_array(RANDOM.random((rows, columns // block)).astype(np.float32), "scale")
    numbers, bits = {"bits": 4}, case.startswith("bytes")
    kind = TensorProto.UINT4 if case.startswith("UINT4") else TensorProto.INT4
    if bits:
        parts = [numpy_helper.from_array(RANDOM.integers(0, 256, (rows, columns // 2), np.uint8), "table_Q4")]
        zero = numpy_helper.from_array(RANDOM.integers(0, 256, (rows, columns // block // 2), np.uint8), "zero")
    else:
        low = 0 if kind == TensorProto.UINT4 else -8
        parts = [helper.make_tensor("table_Q4", kind, [rows, columns], RANDOM.integers(low, low + 16, rows * columns))]
        zero = helper.make_tensor("zero", kind, scale.dims, RANDOM.integers(low, low + 16, rows * columns // block))
    parts += [scale, *([zero] if "zero" in case else [])]
    names = ["table_Q4", "ids", *(part.name for part in parts[1:])]
    node = helper.make_node(
        "GatherBlockQuantized", names, ["y"], domain="com.microsoft", block_size=block, quantize_axis=1, gather_axis=0, **numbers
    )
    model = model_of([node], parts, {}, {"y": ["n", columns]}, domains={"com.microsoft": 1})
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    save(model, tmp_path / "m.onnx")
    want = run(tmp_path / "m.onnx", ids=np.arange(rows))
    assert whole(tmp_path / "m.onnx", "table").tobytes() == want.tobytes()


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)} for _ in range(2)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("layout", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_and_biases_of_static_quantization_keep_their_names(tmp_path: Path, layout: str, per_channel: bool) -> None:
    arrays = {
        "k": RANDOM.standard_normal((8, 3, 3, 3)), "kb": RANDOM.standard_normal(8),
        "fc": RANDOM.standard_normal((8 * 36, 5)), "fcb": RANDOM.standard_normal(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fcb"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    save(model_of(nodes, tensors, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}), tmp_path / "m.onnx")
    quantize_static(
        tmp_path / "m.onnx", tmp_path / "q.onnx", Samples(), quant_format=QuantFormat[layout], per_channel=per_channel,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    for name, array in arrays.items():
        got = whole(tmp_path / "q.onnx", name)
        step = np.abs(array).max() / 127
        assert 0 < np.abs(got - array).max() < step, name


def test_packed_integers_that_do_not_fill_a_byte(tmp_path: Path) -> None:
    """They become a byte each: raw, a number for each byte, and in another file."""
    values = {"INT4": [-8, 7, 3], "UINT4": [15, 0, 9], "INT2": [-2, 1, 0, -1, 1], "UINT2": [3, 2, 1]}
    tensors = []
    for name, numbers in values.items():
        tensor = helper.make_tensor(f"{name} raw", getattr(TensorProto, name), [len(numbers)], numbers)
        data = bytes(tensor.int32_data)
        plain = onnx.TensorProto(name=f"{name} typed", data_type=tensor.data_type, dims=tensor.dims)
        plain.int32_data.extend(data)
        tensor.ClearField("int32_data")
        tensor.raw_data = data
        tensors += [tensor, plain]
        far = onnx.TensorProto(name=f"{name} far", data_type=tensor.data_type, dims=tensor.dims, data_location=1)
        far.external_data.add(key="location", value=f"{name}.bin")
        (tmp_path / f"{name}.bin").write_bytes(data)
        tensors.append(far)
    save(model_of(initializers=tensors), tmp_path / "m.onnx")
    found = inspect_path(str(tmp_path / "m.onnx"), plugins.get().formats)
    assert found.state == "ready", found.reason
    for tensor in found.load_table().tensors:
        kind = tensor.name.split()[0]
        assert tensor.dtype == ("U8" if kind.startswith("U") else "I8")
        assert read_tensor(tensor).view(np.uint8 if tensor.dtype == "U8" else np.int8).tolist() == values[kind], tensor.name
