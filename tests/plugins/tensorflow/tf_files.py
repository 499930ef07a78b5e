"""Makes real TensorFlow files with TensorFlow. A program, for importing it takes seconds and memory:

python tf_files.py DIRECTORY     what the tests read, with an ``.npz`` of what ``tf.train.load_checkpoint`` says of each
python tf_files.py --serve       saves and loads checkpoints as it is told, line by line
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def said(prefix: str) -> dict[str, Any]:
    """Every number in a checkpoint, by its key; of the first version, TensorFlow itself reads but the common types."""
    reader = tf.train.load_checkpoint(prefix)
    found = {}
    for key, kind in reader.get_variable_to_dtype_map().items():
        if kind not in (tf.string, tf.bfloat16):
            try:
                found[key] = reader.get_tensor(key)
            except tf.errors.UnimplementedError:
                continue
    return found


def note(prefix: Path) -> None:
    np.savez(f"{prefix}.npz", **said(str(prefix)))


class Net(tf.Module):
    """Two variables with names, two without, a constant, and a vocabulary."""

    def __init__(self, vocabulary: Path) -> None:
        self.w = tf.Variable(np.arange(12, dtype="f4").reshape(3, 4), name="dense/kernel")
        self.b = tf.Variable(np.ones(4, "f2"), name="dense/bias")
        self.nameless = [tf.Variable(1.0), tf.Variable(2.0)]
        self.half = tf.Variable(tf.constant([1.5, -2.0], tf.bfloat16), name="brain")
        words = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, 0, tf.int64, 1)
        self.table = tf.lookup.StaticHashTable(words, -1)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([], tf.string)])
    def run(self, x: Any, word: Any) -> Any:
        table = tf.constant(np.arange(400, dtype="f4").reshape(100, 4))
        return {"y": x @ self.w + table[:1], "number": self.table.lookup(word)}


class Bad(tf.Module):
    """Reads and writes files when it is run."""

    def __init__(self) -> None:
        self.w = tf.Variable(np.ones(3, "f4"), name="w")

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def run(self, path: Any) -> Any:
        tf.io.write_file(path, "x")
        tf.print("seen", output_stream="file:///tmp/never")
        return {"y": tf.io.read_file(path)}


class Constant(tf.Module):
    """Computes with a constant alone."""

    @tf.function(input_signature=[tf.TensorSpec([None, 60], tf.float32)])
    def run(self, x: Any) -> Any:
        return x @ tf.constant(np.arange(600, dtype="f4").reshape(60, 10), name="table")


class Text(tf.Module):
    """A model that takes words."""

    def __init__(self) -> None:
        self.vectors = tf.Variable(np.ones((3, 4), "f4"), name="vectors")
        words = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
        self.table = tf.lookup.StaticHashTable(words, 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def run(self, words: Any) -> Any:
        return {"y": tf.gather(self.vectors, self.table.lookup(tf.strings.lower(words)))}


def objects(directory: Path) -> None:
    vocabulary = directory / "words.txt"
    vocabulary.write_text("a\t1\nb\t2\n")
    net = Net(vocabulary)
    place = directory / "objects"
    tf.train.Checkpoint(model=net, step=tf.Variable(3, dtype=tf.int64), said=tf.Variable("hello")).save(place / "ckpt")
    note(place / "ckpt-1")
    tf.saved_model.save(net, directory / "saved", signatures=net.run)
    note(directory / "saved" / "variables" / "variables")
    os.replace(directory / "saved" / "variables" / "variables.npz", directory / "saved.npz")
    text = Text()
    tf.saved_model.save(text, directory / "text" / "3", signatures=text.run)
    constant = Constant()
    tf.saved_model.save(constant, directory / "constant", signatures=constant.run)
    bad = Bad()
    tf.saved_model.save(bad, directory / "bad", signatures=bad.run)

    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(2, name="two")])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4), "f4"), np.ones((8, 2), "f4"), verbose=0)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(directory / "keras" / "ckpt")
    note(directory / "keras" / "ckpt")
    tf.train.Checkpoint(net=model, opt=model.optimizer).write(directory / "keras" / "other")
    model.export(directory / "exported", verbose=False)
    np.savez(directory / "keras.npz", **{weight.path: np.asarray(weight) for weight in model.weights})


def sessions(directory: Path) -> None:
    for name in ("names", "first", "frozen"):
        (directory / name).mkdir()
    random = np.random.default_rng(0)
    graph = tf.Graph()
    with graph.as_default():
        part = v1.get_variable(
            "part", shape=[10, 6], partitioner=v1.fixed_size_partitioner(3), initializer=v1.random_normal_initializer()
        )
        wide = v1.get_variable(
            "wide", shape=[3, 300], partitioner=v1.fixed_size_partitioner(2, 1), initializer=v1.random_normal_initializer()
        )
        others = [
            v1.get_variable("a/b", initializer=np.arange(6, dtype="i4").reshape(2, 3) - 3),
            v1.get_variable("l", initializer=np.arange(6, dtype="i8") * -5),
            v1.get_variable("flags", initializer=np.array([True, False])),
            v1.get_variable("bytes", initializer=np.arange(7, dtype="u1")),
            v1.get_variable("large", initializer=random.standard_normal((600, 300)).astype("f4")),
            v1.get_variable("double", initializer=random.standard_normal(5)),
            v1.get_variable("complex", initializer=(random.standard_normal(4) + 1j).astype("c8")),
            v1.get_variable("scalar", initializer=np.float32(2.5)),
        ]
        half = v1.get_variable("half", initializer=np.arange(6, dtype="f2"))
        v1.get_variable("words", initializer=tf.constant(["x", "yy" * 200]))
        loss = tf.reduce_sum(others[4]) + tf.reduce_sum(others[7])
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step, var_list=[others[4], others[7]])
        x = v1.placeholder(tf.float32, [None, 6], name="x")
        tf.matmul(x, tf.transpose(tf.concat(list(part), 0)), name="y")
        tf.constant(np.zeros((5, 7), "f4"), name="zeros")
        tf.constant([1.0, 2, 3, 3, 3, 3, 3, 3], name="tail")
        tf.constant(np.arange(100, dtype="i4"), name="ints")
        tf.constant(np.full((64, 3), 0.5, "f2"), name="halves")
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(train)
            v1.train.Saver().save(session, str(directory / "names" / "model.ckpt"), global_step=7)
            note(directory / "names" / "model.ckpt-7")
            first = v1.train.Saver([*part, *wide, *others], write_version=v1.train.SaverDef.V1)
            first.save(session, str(directory / "first" / "model.ckpt"))
            note(directory / "first" / "model.ckpt")
            v1.train.Saver([half], write_version=v1.train.SaverDef.V1).save(session, str(directory / "first" / "half.ckpt"))
            kept = ["y", "zeros", "tail", "ints", "halves"]
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), kept)
            (directory / "frozen" / "frozen.pb").write_bytes(frozen.SerializeToString())
            from tensorflow.python.framework import tensor_util

            values = {node.name: tensor_util.MakeNdarray(node.attr["value"].tensor) for node in frozen.node if node.op == "Const"}
            np.savez(directory / "frozen" / "frozen.npz", **values)
            v1.saved_model.simple_save(session, str(directory / "simple"), {"x": x}, {"y": graph.get_tensor_by_name("y:0")})


def shards(directory: Path) -> None:
    """Several data files, put together from one each."""
    place = directory / "shards"
    place.mkdir()
    random = np.random.default_rng(1)
    arrays = {f"layer{number}/kernel": random.standard_normal((8, number + 1)).astype("f4") for number in range(3)}
    parts = []
    for number, (name, array) in enumerate(arrays.items()):
        parts.append(f"{place}/part{number}")
        tf.raw_ops.SaveV2(prefix=parts[-1], tensor_names=[name], shape_and_slices=[""], tensors=[array])
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=f"{place}/model")
    note(place / "model")


def narrow(directory: Path) -> None:
    """Integers of four bits, one of them in slices."""
    (directory / "narrow").mkdir()
    kinds = {"signed": tf.dtypes.experimental.int4, "unsigned": tf.dtypes.experimental.uint4}
    values = {"signed": np.arange(-8, 7).reshape(3, 5), "unsigned": np.arange(16).reshape(2, 2, 4), "scalar": np.array(-3)}
    slices = ["3 5 0,1:0,5", "3 5 1,2:0,5"]
    with tf.Graph().as_default(), v1.Session() as session:
        parts = [tf.cast(values["signed"][rows], kinds["signed"]) for rows in (slice(0, 1), slice(1, 3))]
        names = ["whole/signed", "unsigned", "scalar", "signed", "signed"]
        whole = [tf.cast(values[name.rpartition("/")[2]], kinds.get(name, kinds["signed"])) for name in names[:3]]
        prefix = f"{directory}/narrow/model"
        session.run(
            tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=["", "", "", *slices], tensors=[*whole, *parts])
        )
    np.savez(f"{directory}/narrow/model.npz", **values, **{"whole/signed": values["signed"]})


# --- what the server does -------------------------------------------------------------------------------------------


def save(prefix: str, arrays: dict[str, Any]) -> None:
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[*arrays], shape_and_slices=[""] * len(arrays), tensors=[*arrays.values()])


def save_first(path: str, arrays: dict[str, Any]) -> None:
    """A checkpoint of the first version."""
    with tf.Graph().as_default(), v1.Session() as session:
        fed = [v1.placeholder(array.dtype, array.shape) for array in arrays.values()]
        slices = [""] * len(fed)
        done = tf.raw_ops.SaveSlices(filename=path, tensor_names=[*arrays], shapes_and_slices=slices, data=fed)
        session.run(done, dict(zip(fed, arrays.values(), strict=True)))


def save_model(path: str, arrays: dict[str, Any]) -> None:
    """A SavedModel of variables with names."""
    module = tf.Module()
    module.variables_of_it = [tf.Variable(array, name=name) for name, array in arrays.items()]
    tf.saved_model.save(module, path)


def save_graph(path: str, arrays: dict[str, Any]) -> None:
    """A graph of constants."""
    with tf.Graph().as_default() as graph:
        for name, array in arrays.items():
            assert tf.constant(array, name=name).op.name == name
    Path(path).write_bytes(graph.as_graph_def().SerializeToString())


def nested(names: Any, like: Any) -> tuple[dict[str, Any], list[Any]]:
    """Objects whose attributes are called what ``names`` say, and their variables, which are all zero."""
    root, variables = tf.Module(), []
    for name, array in zip(names, like, strict=True):
        *path, last = name.split("/" if "/" in name else ".")
        at: Any = root
        for part in path:
            if not hasattr(at, part):
                setattr(at, part, tf.Module())
            at = getattr(at, part)
        variables.append(tf.Variable(tf.zeros_like(array)))
        setattr(at, last, variables[-1])
    tops = dict.fromkeys(name.replace("/", ".").partition(".")[0] for name in names)
    return {top: getattr(root, top) for top in tops}, variables


def restore(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    tops, variables = nested(arrays, arrays.values())
    tf.train.Checkpoint(**tops).restore(prefix).assert_consumed()
    return {name: variable.numpy() for name, variable in zip(arrays, variables, strict=True)}


def restore_layers(prefix: str) -> dict[str, Any]:
    """Layers of Keras, restored by their names."""
    import keras

    layers = {
        "dense": (keras.layers.Dense(3), (None, 4)),
        "both": (keras.layers.Bidirectional(keras.layers.LSTM(2)), (None, 5, 3)),
        "mha": (keras.layers.MultiHeadAttention(2, 3), (None, 4, 6)),
    }
    for name, (layer, shape) in layers.items():
        layer.build(*([shape] * (2 if name == "mha" else 1)))
    tf.train.Checkpoint(**{name: layer for name, (layer, _) in layers.items()}).restore(prefix).expect_partial()
    named = (
        (f"{name}/{weight.path.partition('/')[2]}", weight) for name, (layer, _) in layers.items() for weight in layer.weights
    )
    return {path: weight.numpy() for path, weight in named if "seed" not in path}


def again(prefix: str, made: str) -> dict[str, Any]:
    """Restore ``prefix`` into objects like those that it was made of, empty, and save them anew."""
    if Path(made).name == "keras":
        import keras

        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        found, variables = tf.train.Checkpoint(model=model, optimizer=model.optimizer), model.weights
    else:
        net = Net(Path(made).parent / "words.txt")
        step, said_ = tf.Variable(0, dtype=tf.int64), tf.Variable("")
        found, variables = tf.train.Checkpoint(model=net, step=step, said=said_), net.variables
    for variable in variables:
        variable.assign(tf.zeros_like(variable))
    if Path(made).name == "keras":
        found.read(prefix).assert_consumed()
    else:
        found.restore(prefix).assert_consumed()
        assert said_.numpy() == b"hello"
    return said(found.write(f"{prefix}-again"))


def serve() -> None:
    """A line is a JSON list: what to do, with which path, the file that arrays go by, and their names."""
    for line in sys.stdin:
        what, path, file, names = json.loads(line)
        try:
            arrays: dict[str, Any] = {}
            if what in ("save", "save_first", "save_model", "save_graph", "restore"):
                with np.load(file) as given:
                    arrays = {name: given[f"arr_{number}"] for number, name in enumerate(names)}
            match what:
                case "load":
                    found = said(path)
                case "again":
                    found = again(path, *names)
                case "restore":
                    found = restore(path, arrays)
                case "restore_layers":
                    found = restore_layers(path)
                case _:
                    found = globals()[what](path, arrays) or {}
            np.savez(file, *found.values())
            answer: Any = [*found]
        except Exception as error:  # noqa: BLE001 - the other side says it
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        for make in (objects, sessions, shards, narrow):
            make(Path(sys.argv[1]))
