"""What is written here is restored by TensorFlow's objects: those that names make, and those that a checkpoint was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelhub import plugins
from modelhub.detect import inspect_path
from safetensors.numpy import save_file

from tests.conftest import Modelhub

CHECKPOINTS = {"objects": "objects/ckpt-1", "keras": "keras/ckpt"}


def test_objects_whose_attributes_are_called_as_tensors_are(tensorflow: Any, modelhub: Modelhub, tmp_path: Path) -> None:
    arrays = {
        "encoder/layer_0/kernel": np.arange(12, dtype="f4").reshape(3, 4),
        "encoder/layer_0/bias": np.ones(4, "f2"),
        "encoder/scale": np.float64(2.5),
        "encoder/empty": np.zeros((0, 3), "f4"),
        "step": np.int64(7),
    }
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    save_file(arrays, tmp_path / "in.safetensors")
    done = modelhub("convert", tmp_path / "in.safetensors", "--to", "tensorflow", "-o", tmp_path / "out.index")
    assert "note:" not in done.stdout + done.stderr
    assert {*tensorflow.load(str(tmp_path / "out"))} == {*arrays, *(f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in arrays)}
    found = tensorflow.restore(str(tmp_path / "out"), arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


def test_names_of_other_libraries_are_all_there_is(tensorflow: Any, modelhub: Modelhub, tmp_path: Path) -> None:
    arrays = {"encoder.layers.0.weight": np.arange(12, dtype="f4").reshape(3, 4), "step": np.asarray(np.int64(7))}
    save_file(arrays, tmp_path / "in.safetensors")
    modelhub("convert", tmp_path / "in.safetensors", "--to", "tensorflow", "-o", tmp_path / "out.index")
    found = tensorflow.load(str(tmp_path / "out"))
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_layers_of_keras(tensorflow: Any, modelhub: Modelhub, tmp_path: Path) -> None:
    """Their variables' names are not always their attributes'."""
    random = np.random.default_rng(3)
    shapes = {"dense/kernel": (4, 3), "dense/bias": (3,)}
    for side in ("forward", "backward"):
        cell = f"both/{side}_lstm/lstm_cell"
        shapes |= {f"{cell}/kernel": (3, 8), f"{cell}/recurrent_kernel": (2, 8), f"{cell}/bias": (8,)}
    for part in ("query", "key", "value"):
        shapes |= {f"mha/{part}/kernel": (6, 2, 3), f"mha/{part}/bias": (2, 3)}
    shapes |= {"mha/attention_output/kernel": (2, 3, 6), "mha/attention_output/bias": (6,)}
    arrays = {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "in.safetensors")
    modelhub("convert", tmp_path / "in.safetensors", "--to", "tensorflow", "-o", tmp_path / "out.index")
    found = tensorflow.restore_layers(str(tmp_path / "out"))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("what", [*CHECKPOINTS])
def test_a_copy_restores_what_the_original_does(
    what: str, made: Path, tensorflow: Any, modelhub: Modelhub, tmp_path: Path
) -> None:
    """With the optimizer's state, the save counter, strings, and variables that have no name of their own."""
    original = made / CHECKPOINTS[what]
    done = modelhub("convert", f"{original}.index", "--to", "tensorflow", "-o", tmp_path / "out.index", "--max-shard-size", "40")
    assert "left behind" not in done.stdout + done.stderr
    want = tensorflow.load(str(original))
    copied = tensorflow.load(str(tmp_path / "out"))
    found = tensorflow.again(str(tmp_path / "out"), made / what)
    assert set(found) == set(copied) == set(want)
    for key, array in want.items():
        assert found[key].dtype == copied[key].dtype == array.dtype
        assert np.array_equal(found[key], array), key
        assert np.array_equal(copied[key], array), key
    first, second = (
        {tensor.name: tensor[1:3] for tensor in inspect_path(str(path), plugins.get().formats).load_table().logical}
        for path in (original.with_suffix(".index"), tmp_path / "out.index")
    )
    assert first == second


def test_a_recipe_is_for_the_model(made: Path, modelhub: Modelhub, tmp_path: Path) -> None:
    """State and counters keep their dtypes."""
    modelhub("convert", made / "keras/ckpt.index", "--to", "tensorflow:bf16", "-o", tmp_path / "out.index")
    table = inspect_path(str(tmp_path / "out.index"), plugins.get().formats).load_table()
    assert {tensor.dtype for tensor in table.logical} == {"BF16"}
    assert {tensor.dtype for tensor in table.tensors if tensor.view == "stored"} == {"F32", "I64"}


def test_the_variables_of_a_saved_model(made: Path, tensorflow: Any, modelhub: Modelhub, tmp_path: Path) -> None:
    modelhub("convert", made / "saved", "--to", "tensorflow", "-o", tmp_path / "out.index")
    known = np.load(made / "saved.npz")
    found = tensorflow.load(str(tmp_path / "out"))
    assert set(found) >= set(known)
    assert all(np.array_equal(found[key], known[key]) for key in known)


def test_a_saved_model_without_variables_is_its_constants(
    made: Path, tensorflow: Any, modelhub: Modelhub, tmp_path: Path
) -> None:
    """Its index holds the graph of objects alone."""
    modelhub("convert", made / "constant", "--to", "tensorflow", "-o", tmp_path / "out.index")
    (array,) = (array for name, array in tensorflow.load(str(tmp_path / "out")).items() if not name.endswith("VARIABLE_VALUE"))
    assert np.array_equal(array, np.arange(600, dtype="f4").reshape(60, 10))


@pytest.mark.parametrize("source", ["names/model.ckpt-7.index", "first/model.ckpt"])
def test_what_has_names_alone_keeps_them(source: str, made: Path, tensorflow: Any, modelhub: Modelhub, tmp_path: Path) -> None:
    """TensorFlow restores by names where there is no graph of objects."""
    modelhub("convert", made / source, "--to", "tensorflow", "-o", tmp_path / "out.index")
    known = np.load(made / f"{source.removesuffix('.index')}.npz")
    found = tensorflow.load(str(tmp_path / "out"))
    assert all(np.array_equal(found[name], known[name]) for name in known)
    assert not [name for name in found if name.endswith("VARIABLE_VALUE")]
