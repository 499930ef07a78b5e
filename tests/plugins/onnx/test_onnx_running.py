"""Models are run whatever they take and give; where they are not, it is said whose fault that is."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from modelhub_onnx import compare, made_up, running
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Modelhub
from tests.plugins.onnx_files import model_of, save

SPARE = numpy_helper.from_array(np.ones(2, np.float32), "spare")
"""A tensor, without which there is nothing to convert."""


def typed(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    model = model_of(nodes, [SPARE])
    model.graph.input.extend(inputs)
    model.graph.output.extend(outputs)
    return model


def value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def of_a_list() -> onnx.ModelProto:
    node = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    listed = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n", 3])
    return typed([node], [listed], [value("y", TensorProto.FLOAT, ["m", 3])])


def of_what_may_be_missing() -> onnx.ModelProto:
    node = helper.make_node("OptionalGetElement", ["o"], ["y"])
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [3]))
    return typed([node], [helper.make_value_info("o", kind)], [value("y", TensorProto.FLOAT, [3])])


def of_bfloat16() -> onnx.ModelProto:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["f", "f"], ["g"])]
    nodes.append(helper.make_node("Cast", ["g"], ["y"], to=TensorProto.BFLOAT16))
    return typed(nodes, [value("x", TensorProto.BFLOAT16, [2, 4])], [value("y", TensorProto.BFLOAT16, [2, 4])])


def of_words() -> onnx.ModelProto:
    node = helper.make_node("StringConcat", ["x", "x"], ["y"])
    return typed([node], [value("x", TensorProto.STRING, [2])], [value("y", TensorProto.STRING, [2])])


def to_four_bits() -> onnx.ModelProto:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT4)
    return typed([node], [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.INT4, [4])])


@pytest.mark.parametrize(
    ("make", "said"),
    [(of_a_list, "s[2, 8]"), (of_what_may_be_missing, "o[3]"), (of_bfloat16, "x[2, 4]"), (of_words, "x[2]"),
     (to_four_bits, "x[4]")],
)  # fmt: skip
def test_inputs_of_every_kind(tmp_path: Path, make: object, said: str) -> None:
    loaded = running.session(str(save(make(), tmp_path / "m.onnx")))  # type: ignore[operator]
    (feed,) = made_up.suitable(loaded, 1)
    assert running.described(feed) == said
    (output,) = running.run(loaded, [feed])[0]
    if make is of_bfloat16:
        assert output.dtype == np.float32
        want = (feed["x"].astype(np.float32) * 2).astype(ml_dtypes.bfloat16).astype(np.float32)
        assert output.tobytes() == want.tobytes()


def test_lists_and_words_from_the_users_files(tmp_path: Path, modelhub: Modelhub) -> None:
    """The tensors of a list are rows of one array; words are not pickled."""
    np.savez(tmp_path / "list.npz", s=np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    path = save(of_a_list(), tmp_path / "m.onnx")
    done = modelhub("convert", path, "--to", "onnx:int8", "--calibration", tmp_path / "list.npz", status=3)
    assert "nothing in this model could be quantized" in done.stderr  # past its inputs
    np.savez(tmp_path / "list.npz", s=np.float32(1))
    done = modelhub("convert", path, "--to", "onnx:int8", "--calibration", tmp_path / "list.npz", status=2)
    assert "the model takes a list of tensors: stack them" in done.stderr
    np.savez(tmp_path / "words.npz", x=np.array(["a", "bc"]))
    path = save(of_words(), tmp_path / "w.onnx")
    done = modelhub("convert", path, "--to", "onnx:int8", "--calibration", tmp_path / "words.npz", status=2)
    assert "the source gives no numbers on 1 set of inputs" in done.stderr  # past its inputs, too


def test_what_a_classifier_gives_is_compared() -> None:
    """A list with a map of probabilities for each row (scikit-learn's ZipMap), and words, which are passed over."""
    before = [[np.array(["a", "b"]), [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]]]
    after = [[np.array(["a", "b"]), [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.25}]]]
    (row,) = compare.differences(["label", "probability"], before, ["label", "probability"], after, {})
    assert (row["name"], row["values"], row["max_error"]) == ("probability", 4, 0.25)


def test_sides_whose_names_are_numbers(tmp_path: Path) -> None:
    matrix = numpy_helper.from_array(np.ones((48, 2), np.float32), "w")
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [matrix], {"x": ["n", "48"]}, {"y": ["n", 2]})
    loaded = running.session(str(save(model, tmp_path / "m.onnx")))
    assert made_up.suitable(loaded, 1)[0]["x"].shape == (8, 48)


def test_a_small_table_gets_indices_that_it_has(tmp_path: Path, modelhub: Modelhub) -> None:
    table = numpy_helper.from_array(np.ones((16, 4), np.float32), "table")
    model = model_of([helper.make_node("Gather", ["table", "ids"], ["y"])], [table], {}, {"y": ["n", 4]})
    model.graph.input.append(value("ids", TensorProto.INT64, ["n"]))
    loaded = running.session(str(save(model, tmp_path / "m.onnx")))
    assert 2 < made_up.suitable(loaded, 1)[0]["ids"].max() < 16


LACKING = {
    "an operator of the first set": helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2]),
    "a gradient": helper.make_node("Gradient", ["x"], ["y"], domain="ai.onnx.preview.training", xs=["x"], y="y"),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_onnxruntime_has_no_code_for_is_not_the_models_fault(tmp_path: Path, modelhub: Modelhub, case: str) -> None:
    model = model_of(
        [LACKING[case]], [SPARE], inputs={"x": [1, 1, 4, 4]}, outputs={"y": None}, domains={"ai.onnx.preview.training": 1}
    )
    model.opset_import[0].version = 1 if "first" in case else 21
    path = save(model, tmp_path / "m.onnx")
    (report,) = modelhub("verify", path, "--level", "runnable", "--json").json
    (finding,) = [item for item in report["findings"] if item["check"] == "onnx-runtime"]
    assert report["ok"]
    assert finding["severity"] == "warning"
    assert f"not run: onnxruntime {onnxruntime.__version__} has no code for one of its operators" in finding["message"]
    done = modelhub("convert", path, "--to", "onnx:fp16", status=3)
    assert "has no code for one of its operators" in done.stderr


def test_operators_of_others_stop_a_conversion_with_the_reason(tmp_path: Path, modelhub: Modelhub) -> None:
    model = model_of(
        [helper.make_node("MyOp", ["x"], ["y"], domain="acme.ops")], [SPARE], {"x": [4]}, {"y": [4]}, domains={"acme.ops": 1}
    )
    done = modelhub("convert", save(model, tmp_path / "m.onnx"), "--to", "onnx:int8", status=3)
    assert "operators of 'acme.ops' take a library of native code" in done.stderr
