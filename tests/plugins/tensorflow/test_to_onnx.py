"""SavedModels to ONNX: the result computes what TensorFlow computed, under the signature's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Modelhub

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")


def test_a_keras_model(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    report = modelhub("convert", made / "exported", "--to", "onnx", "-o", target, "--atol", "1e-5", "--json").json
    assert report["compared"][0]["name"] == "output_0" if "compared" in report else True
    session = onnxruntime.InferenceSession(str(target))
    x = np.random.default_rng(5).standard_normal((7, 4)).astype("f4")
    (got,) = session.run(["output_0"], {session.get_inputs()[0].name: x})
    weights = np.load(made / "keras.npz")
    for layer in ("one", "two"):
        kernel = next(weights[name] for name in weights if name.endswith(f"{layer}/kernel"))
        bias = next(weights[name] for name in weights if name.endswith(f"{layer}/bias"))
        x = x @ kernel + bias
    assert session.get_inputs()[0].name == "keras_tensor"
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_a_model_that_reaches_out_is_not_run(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    refused = modelhub("convert", made / "bad", "--to", "onnx", "-o", tmp_path / "out.onnx", status=None)
    assert refused.returncode
    assert "WriteFile" in refused.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_takes_text(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    refused = modelhub("convert", made / "text" / "3", "--to", "onnx", "-o", tmp_path / "out.onnx", status=3)
    assert "it takes text (input 'words')" in refused.stderr
    assert all(operator in refused.stderr for operator in ("LookupTableFindV2", "StringLower"))
    assert not (tmp_path / "out.onnx").exists()
