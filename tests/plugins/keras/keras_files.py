"""Makes real Keras and TensorFlow Lite files with those libraries. A program, for importing them takes seconds and memory:

python keras_files.py DIRECTORY

Beside each there is an ``.npz`` of what the library itself says is in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def digits() -> Any:
    """A Sequential model of every common kind of layer, trained for one step so that nothing is at its first value."""
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="dw"),
            layers.SeparableConv2D(4, 3, name="sep"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(10, name="out"),
        ],
        name="digits",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    model.fit(random.random((16, 12, 12, 1), "f4"), random.integers(0, 10, 16), epochs=1, verbose=0)
    return model


def tagger(code: bool = False) -> Any:
    """A Functional model with a model inside, wrappers around layers, and where ``code`` is wanted a function of Python's."""
    tower = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="a"), layers.Dense(4, name="b")], name="tower")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 16, name="embed")(tokens)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both")(x)
    if code:
        x = layers.TimeDistributed(layers.Lambda(lambda t: t * 2, name="twice"), name="each")(x)
    x = layers.TimeDistributed(tower, name="towers")(x)
    x = layers.TimeDistributed(layers.Dense(4), name="points")(x)
    x = layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True, name="stack")(x)
    x = layers.MultiHeadAttention(2, 4, name="attn")(x, x)
    x = layers.LayerNormalization(name="ln")(x)
    x = layers.GRU(4, name="gru")(x)
    return keras.Model(tokens, layers.Dense(2, name="head")(x), name="tagger")


@keras.saving.register_keras_serializable(package="lab")
class Mine(layers.Layer):
    """Somebody's own layer."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, inputs: Any) -> Any:
        return inputs * self.w


def halves() -> Any:
    parts = [keras.Input((16,)), layers.Dense(8, dtype="bfloat16", name="b"), layers.Dense(4, dtype="float16", name="h")]
    return keras.Sequential(parts, name="halves")


def save(model: Any, path: Path) -> None:
    """In each of Keras's three kinds of files, with the weights as Keras gives them."""
    model.save(path.with_suffix(".keras"))
    model.save(path.with_suffix(".h5"))
    model.save_weights(path.with_suffix(".weights.h5"))
    arrays = {weight.path: np.asarray(tf.cast(weight.value, "float32")) for weight in model.weights}
    np.savez(path.with_suffix(".npz"), **arrays)


def lite(model: Any, path: Path, **settings: Any) -> None:
    """Convert it, and note what the interpreter says of its constants: ``INDEX`` the value, ``INDEX.scale``, ..."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.target_spec.supported_types = settings.pop("types", [])
    converter.target_spec.supported_ops = settings.pop("operators", [tf.lite.OpsSet.TFLITE_BUILTINS])
    for name, value in settings.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())
    loaded = tf.lite.Interpreter(str(path), experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF)
    loaded.allocate_tensors()
    said: dict[str, Any] = {}
    for one in loaded.get_tensor_details():
        try:
            said[f"{one['name']}|value"] = loaded.get_tensor(one["index"])
        except ValueError:  # computed, and not yet
            continue
        for key in ("scales", "zero_points", "quantized_dimension"):
            said[f"{one['name']}|{key}"] = one["quantization_parameters"][key]
    np.savez(path.with_suffix(".npz"), **said)


def quantized(directory: Path, mode: str, group: int | None) -> None:
    """A model that Keras quantized, and the floats that it computes with."""
    from keras.src import quantizers

    keras.utils.set_random_seed(1)
    given = keras.Input((6,), dtype="int32")
    x = layers.Embedding(50, 16, name="words")(given)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 24), bias_axes="d", name="einsum")(x)
    x = layers.MultiHeadAttention(4, 8, name="attention")(x, x)
    x = layers.Dense(10, name="odd", use_bias=False)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(given, layers.Dense(3, name="last")(x), name="quantized")
    kinds = {"int8": keras.quantizers.Int8QuantizationConfig, "int4": keras.quantizers.Int4QuantizationConfig}
    model.quantize(mode, config=kinds[mode](**({"block_size": group} if group else {})) if mode in kinds else None)
    said, stem = {}, mode + {None: "", 8: "-groups", -1: "-channels"}[group]
    for layer in model._flatten_layers():
        for name in ("kernel", "embeddings"):
            packed = getattr(layer, f"_{name}", None)
            scale = getattr(layer, f"{name}_scale", None)
            if packed is None or not str(packed.dtype).startswith("int"):
                continue
            values = keras.ops.convert_to_tensor(packed)
            width = getattr(layer, "_orig_output_dim", None) or packed.shape[-1]
            if mode == "int4":
                values = quantizers.unpack_int4(values, scale.shape[-1] if name == "kernel" else width, axis=-1)
            if getattr(layer, f"{name}_zero", None) is not None:
                axis = 0 if name == "kernel" else -1
                zero = getattr(layer, f"{name}_zero")
                floats = quantizers.quantizers.dequantize_with_sz_map(values, scale, zero, layer.g_idx, group_axis=axis)
            else:
                side = scale if name == "kernel" else keras.ops.reshape(scale, (-1, 1))
                if name == "kernel" and len(side.shape) > len(values.shape):
                    side = keras.ops.reshape(side, side.shape[len(side.shape) - len(values.shape) :])
                floats = keras.ops.divide(keras.ops.cast(values, "float32"), side)
            said[f"{layer.path.removeprefix('quantized/')}/{name}"] = np.asarray(floats)
    model.save(directory / f"quantized-{stem}.keras")
    np.savez(directory / f"quantized-{stem}.npz", **said)


def main(directory: Path) -> None:
    keras.utils.set_random_seed(1)
    cnn = digits()
    save(cnn, directory / "digits")
    save(tagger(), directory / "tagger")
    tagger(code=True).save(directory / "code.keras")
    tagger(code=True).save(directory / "code.h5")
    save(halves(), directory / "halves")
    wide = keras.Sequential([keras.Input((64,)), *(layers.Dense(64, name=name) for name in "abcde")], name="wide")
    wide.save_weights(directory / "wide.weights.json", max_shard_size=40000 / 1024**3)
    wide.save_weights(directory / "whole.weights.h5")
    keras.Sequential([keras.Input((4,)), Mine(name="mine"), layers.Dense(2, name="d")]).save(directory / "custom.keras")
    small = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="d")], name="small")
    small.quantize("int8")
    small.save(directory / "int8.keras")
    for mode, group in (("int8", None), ("int4", 8), ("int4", -1), ("float8", None)):
        quantized(directory, mode, group)
    with_paths = keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=["a", "b"], name="look")])
    with_paths.save(directory / "lookup.keras")

    default = [tf.lite.Optimize.DEFAULT]
    random = np.random.default_rng(1)
    some = [[random.random((1, 12, 12, 1), "f4")] for _ in range(8)]
    integers = {"optimizations": default, "representative_dataset": lambda: iter(some)}
    lite(cnn, directory / "float.tflite")
    lite(cnn, directory / "large.tflite", _experimental_use_buffer_offset=True)
    lite(cnn, directory / "f16.tflite", optimizations=default, types=[tf.float16])
    lite(cnn, directory / "dynamic.tflite", optimizations=default)
    builtins = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    io = {"inference_input_type": tf.int8, "inference_output_type": tf.int8}
    lite(cnn, directory / "int8.tflite", operators=builtins, **io, **integers)
    wide = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    lite(cnn, directory / "int16x8.tflite", operators=wide, **integers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
