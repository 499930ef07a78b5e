"""A program that fills a directory with Core ML models as coremltools writes them, and what it decompresses of each (`.npz`).

Run by `tests.made.made_once`: coremltools takes seconds to import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.converters.mil.mil import types
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder, quantization_utils
from coremltools.models.pipeline import Pipeline

PLACE = Path(sys.argv[1])
random = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return random.standard_normal(shape).astype(np.float32)


def program(target: Any, precision: Any) -> Any:
    @mb.program(input_specs=[mb.TensorSpec(shape=(4, 64))], opset_version=target)
    def layers(x):  # type: ignore[no-untyped-def]
        y = mb.linear(x=x, weight=mb.const(val=floats(96, 64), name="first"), bias=mb.const(val=floats(96), name="bias"))
        return mb.linear(x=mb.relu(x=y), weight=mb.const(val=floats(32, 96), name="second"), name="out")

    return ct.convert(
        layers, convert_to="mlprogram", minimum_deployment_target=target, compute_precision=precision, skip_model_load=True
    )


def materialized(variable: Any) -> Any:
    """What coremltools decompresses a constant to; it does not look through several of them by itself."""
    made = variable.op
    if made is None or variable.val is not None:
        return variable.val
    if made.op_type == "constexpr_lut_to_dense":
        axis = None if made.vector_axis is None else made.vector_axis.val
        return type(made).decompress(made.indices.val, materialized(made.lut), axis)
    if made.op_type == "constexpr_blockwise_shift_scale":
        return type(made).decompress(materialized(made.data), made.scale.val, None)
    return made.materialized_val_inference()


def vectors(told: dict[str, Any]) -> Any:
    """Tables of vectors, along each axis, in groups, of a sparse weight; and tables that are compressed themselves, or scaled.
    ``told`` gets the weights."""

    def table(*shape: int) -> Any:
        return floats(*shape).astype(np.float16)

    def indices(bits: int, *shape: int) -> Any:
        kind = types.type_mapping.string_to_nptype(f"uint{bits}")
        return random.integers(0, 1 << bits, shape).astype(kind)

    @mb.program(input_specs=[mb.TensorSpec(shape=(4, 64), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def layers(x):  # type: ignore[no-untyped-def]
        first = mb.constexpr_lut_to_dense(indices=indices(3, 48, 64), lut=table(1, 1, 8, 2), vector_axis=0, name="rows")
        second = mb.constexpr_lut_to_dense(indices=indices(2, 32, 24), lut=table(4, 1, 4, 4), vector_axis=-1, name="columns")
        ones = indices(1, 8, 32)
        mask, data = mb.constexpr_lut_to_sparse(
            indices_mask=ones, indices_nonzero_data=indices(2, int(np.count_nonzero(ones))), lut=table(1, 1, 4, 2), vector_axis=0
        )
        third = mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, name="scattered")
        eight = mb.constexpr_blockwise_shift_scale(
            data=random.integers(-99, 99, (1, 1, 16, 1)).astype(np.int8), scale=np.array([[[[0.01]]]], np.float16), name="eight"
        )
        fourth = mb.constexpr_lut_to_dense(indices=indices(4, 8, 16), lut=eight, name="table8")
        plain = mb.constexpr_lut_to_dense(indices=indices(4, 8, 8), lut=table(1, 1, 16, 1), name="unscaled")
        fifth = mb.constexpr_blockwise_shift_scale(data=plain, scale=table(8, 1), name="scaled")
        for weight in (first, second, third, fourth, fifth):
            x = mb.linear(x=x, weight=weight)
            told[weight.name] = materialized(weight)
        return x

    return ct.convert(
        layers, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16,
        skip_model_load=True, pass_pipeline=ct.PassPipeline.EMPTY,
    )  # fmt: skip


def every(one: Any) -> Any:
    return cto.OptimizationConfig(global_config=one)


def programs() -> None:
    base, older = program(ct.target.iOS18, ct.precision.FLOAT32), program(ct.target.iOS16, ct.precision.FLOAT16)
    linear, palette = cto.OpLinearQuantizerConfig, cto.OpPalettizerConfig
    blocks = {"granularity": "per_block", "block_size": 32}
    sparse = every(cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0))
    pruned = cto.prune_weights(base, sparse)
    made = {
        "plain": base,
        "linear8": cto.linear_quantize_weights(base, every(linear(mode="linear", weight_threshold=0))),
        "blocks4": cto.linear_quantize_weights(base, every(linear(mode="linear", dtype="uint4", weight_threshold=0, **blocks))),
        "signed4": cto.linear_quantize_weights(
            base, every(linear(mode="linear_symmetric", dtype="int4", weight_threshold=0, **blocks))
        ),
        "palette3": cto.palettize_weights(base, every(palette(mode="uniform", nbits=3, weight_threshold=0))),
        "groups4": cto.palettize_weights(
            base,
            every(palette(mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=16, weight_threshold=0)),
        ),
        "sparse": pruned,
        "sparse_palette": cto.palettize_weights(
            pruned, every(palette(mode="uniform", nbits=4, weight_threshold=0)), joint_compression=True
        ),
        "sparse_linear": cto.linear_quantize_weights(
            pruned, every(linear(mode="linear_symmetric", weight_threshold=0)), joint_compression=True
        ),
        "older_linear": cto.linear_quantize_weights(older, every(linear(mode="linear", weight_threshold=0))),
        "older_palette": cto.palettize_weights(older, every(palette(mode="uniform", nbits=6, weight_threshold=0))),
        "older_sparse": cto.prune_weights(older, sparse),
        "vectors": vectors(vectors_told := {}),
    }
    for name, model in made.items():
        path = PLACE / f"{name}.mlpackage"
        model.save(str(path))
        spec = ct.utils.load_spec(str(path))
        read = milproto.load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
        if name == "vectors":
            biases = {f"linear_{number}_bias_0": np.zeros(side) for number, side in enumerate((96, 32, 16))}
            np.savez(PLACE / f"{name}.npz", **vectors_told, **{key: zeros.astype(np.float16) for key, zeros in biases.items()})
            continue
        found = {}
        for operation in read.functions["main"].operations:
            if operation.op_type == "const" and np.asarray(operation.outputs[0].val).nbytes >= 64:
                found[operation.outputs[0].name] = np.asarray(operation.outputs[0].val)
            elif operation.op_type.startswith("constexpr"):
                value = operation.materialized_val_inference()
                if not isinstance(value, tuple):
                    found[operation.outputs[0].name] = np.asarray(value)
        np.savez(PLACE / f"{name}.npz", **found)


def network() -> Any:
    builder = NeuralNetworkBuilder([("image", datatypes.Array(3, 8, 8))], [("out", None)], disable_rank5_shape_mapping=True)
    builder.add_convolution(
        "conv", 3, 4, 3, 3, 1, 1, "same", 1, W=floats(3, 3, 3, 4), b=floats(4), has_bias=True, input_name="image", output_name="c"
    )
    builder.add_convolution(
        "deconv", 4, 2, 2, 2, 2, 2, "valid", 1, W=floats(2, 2, 4, 2), b=floats(2), has_bias=True, is_deconv=True,
        input_name="c", output_name="d",
    )  # fmt: skip
    builder.add_batchnorm(
        "norm",
        3,
        gamma=floats(3),
        beta=floats(3),
        mean=floats(3),
        variance=np.abs(floats(3)),
        input_name="image",
        output_name="n",
    )
    builder.add_flatten_to_2d("flat", "d", "f")
    builder.add_inner_product("fc", floats(6, 512), floats(6), 512, 6, True, "f", "y")
    builder.add_embedding("embed", floats(10, 5), None, 10, 5, False, "y", "e")
    matrices = [floats(7, 7) for _ in range(4)], [floats(7, 5) for _ in range(4)], [floats(7) for _ in range(4)]
    builder.add_unilstm("lstm", *matrices, hidden_size=7, input_size=5, input_names=["e"], output_names=["l"])
    builder.add_bidirlstm("both", *matrices, *matrices, hidden_size=7, input_size=5, input_names=["e"], output_names=["b"])
    builder.add_load_constant_nd("constant", "k", floats(2, 3), (2, 3))
    builder.add_activation("prelu", "PRELU", "k", "out", params=floats(2))
    return builder.spec


def weights(network: Any) -> Iterator[tuple[str, Any]]:
    """The weights as protobuf's own classes read them, flat."""
    for layer in network.layers:
        params = getattr(layer, layer.WhichOneof("layer"))
        scopes = [("", params)]
        if layer.WhichOneof("layer") == "uniDirectionalLSTM":
            scopes = [("", params.weightParams)]
        elif layer.WhichOneof("layer") == "biDirectionalLSTM":
            scopes = [("forward/", params.weightParams[0]), ("backward/", params.weightParams[1])]
        elif layer.WhichOneof("layer") == "activation":
            scopes = [("", params.PReLU)]
        for scope, message in scopes:
            for field, value in message.ListFields():
                if field.message_type is not None and field.message_type.name == "WeightParams":
                    half = np.frombuffer(value.float16Value, "<f2")
                    yield f"{layer.name}/{scope}{field.name}", half if half.size else np.array(value.floatValue, "<f4")


def networks() -> None:
    spec = network()
    (PLACE / "network.mlmodel").write_bytes(spec.SerializeToString())
    np.savez(PLACE / "network.npz", **dict(weights(spec.neuralNetwork)))
    full = ct.models.MLModel(spec, skip_model_load=True)
    for name, bits, mode in (
        ("half", 16, "linear"), ("network8", 8, "linear"), ("network3", 3, "linear"), ("table4", 4, "linear_lut"),
    ):  # fmt: skip
        made = quantization_utils.quantize_weights(full, bits, mode)
        spec = made if not hasattr(made, "get_spec") else made.get_spec()
        (PLACE / f"{name}.mlmodel").write_bytes(spec.SerializeToString())
        if bits < 16:
            quantization_utils._dequantize_nn_spec(spec.neuralNetwork)
        np.savez(PLACE / f"{name}.npz", **dict(weights(spec.neuralNetwork)))
    pipeline = Pipeline([("image", datatypes.Array(3, 8, 8))], ["out"])
    pipeline.add_model(network())
    (PLACE / "pipeline.mlmodel").write_bytes(pipeline.spec.SerializeToString())


programs()
networks()
