"""Indexing ONNX models: a drive of a thousand, scanned for the first time.

    python benchmarks/onnx_indexing.py [FILES] [RUNS]

``modelhub scan`` into an empty catalog against a loop of ``onnx.load(load_external_data=False)`` that reads names and shapes.
Once with models that are nearly all header (dozens of nodes and tensors, 40 KB), fine-tunes of one model and no two alike,
once with some weights in them (1 MB), once with what packages ship (1 to 3 MB, linked from the sample drive where that is there).
Files are in the page cache for both sides; then once more with none of them there, as on a drive that was just plugged in.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from harness import MODELHUB, Side, compare, environment, remove, workspace
from onnx import TensorProto, helper, numpy_helper

LOOP = """
import sys, pathlib, onnx
for path in pathlib.Path(sys.argv[1]).rglob("*.onnx"):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.name, list(tensor.dims), tensor.data_type
"""


def model(path: Path, seed: int, layers: int, width: int, top: str = "model") -> None:
    """A stack of layers as exporters write them: four nodes and three tensors each, whose names begin with ``top``."""
    random = np.random.default_rng(seed)
    nodes, tensors, name = [], [], "input"
    for layer in range(layers):
        prefix = f"/{top}/layers.{layer}"
        weight = random.standard_normal((width, width)).astype(np.float32)
        tensors += [
            numpy_helper.from_array(weight, f"{top}.layers.{layer}.dense.weight"),
            numpy_helper.from_array(weight[0], f"{top}.layers.{layer}.dense.bias"),
            numpy_helper.from_array(weight[1], f"{top}.layers.{layer}.norm.weight"),
        ]
        out = [f"{prefix}/{step}_output_0" for step in ("Gemm", "Mul", "Relu", "Softmax")]
        names = [tensor.name for tensor in tensors[-3:]]
        nodes += [
            helper.make_node("Gemm", [name, *names[:2]], [out[0]], name=f"{prefix}/Gemm", alpha=1.0, beta=1.0, transB=1),
            helper.make_node("Mul", [out[0], names[2]], [out[1]], name=f"{prefix}/Mul"),
            helper.make_node("Relu", [out[1]], [out[2]], name=f"{prefix}/Relu"),
            helper.make_node("Softmax", [out[2]], [out[3]], name=f"{prefix}/Softmax", axis=-1),
        ]
        name = out[3]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [value("input", TensorProto.FLOAT, ["batch", width])],
        [value(name, TensorProto.FLOAT, None)],
        tensors,
    )
    path.write_bytes(helper.make_model(graph, producer_name="pytorch", producer_version="2.9").SerializeToString())


def measure(drive: Path, home: Path, what: str, runs: int, *, cold: bool = False) -> None:
    def before() -> None:
        remove(home)()
        if cold:
            forget(drive)

    scan = Side("modelhub scan", [MODELHUB, "scan", str(drive), "--json"], before)
    loop = Side("onnx.load, names and shapes", [sys.executable, "-c", LOOP, str(drive)], before)
    where = ", not in the page cache" if cold else ""
    compare(f"First index of ONNX models, {what}{where}", [scan, loop], runs=runs, env=environment(home))


def forget(drive: Path) -> None:
    """Have the kernel drop the files of ``drive`` from its page cache."""
    os.sync()
    for path in drive.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with workspace("onnx") as place:
        home = place / "home"
        for what, width, alike in (("40 KB", 16, True), ("1 MB", 104, True), ("40 KB, no two alike", 16, False)):
            drive = place / "drive"
            drive.mkdir()
            for number in range(files):
                top = "model" if alike else f"model{number}"
                model(drive / f"model-{number:05}.onnx", number, layers=24, width=width, top=top)
            measure(drive, home, f"{files:,} models of {what}", runs)
            measure(drive, home, f"{files:,} models of {what}", min(runs, 3), cold=True)
            remove(drive)()
        real = sorted((Path(__file__).parent.parent / "sample" / "drive").rglob("*.onnx"))
        drive = place / "real"
        drive.mkdir()
        for number in range(files if real else 0):
            os.link(real[number % len(real)], drive / f"model-{number:05}.onnx")
        if real:
            measure(drive, home, f"{files:,} links to {len(real)} models from PyPI", runs)


if __name__ == "__main__":
    main()
