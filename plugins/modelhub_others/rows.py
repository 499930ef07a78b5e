"""The formats of single files, one row each: names, how the content tells it, what it is, why it is not read, what opens it.

Magic numbers and identifiers are those of the tools' own sources, named in `modelhub_others.contents`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelhub import File, FileProblem, Rejected

from modelhub_others import contents


class Row(NamedTuple):
    """``look(file)`` says in a few words what the content is, None where it is something else. ``why``: what keeps it from being
    read here; ``opens``: what can be done with it. ``companions(file)``: the names of all its files, the primary one first, where
    there may be several."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    look: Callable[[File], str | None]
    why: str
    opens: str
    magics: tuple[bytes, ...] = ()
    companions: Callable[[File], Sequence[str]] | None = None

    def detect(self, file: File) -> Rejected | None:
        """Unsupported, with what it is; None for anything else, whatever its name."""
        try:
            what = self.look(file)
        except FileProblem:
            return None
        if what is None:
            return None
        names = self.companions(file) if self.companions else [file.name]
        directory = os.path.dirname(file.path)
        files = [os.path.join(directory, name) for name in names]
        return Rejected(f"{what}: listed, not read, because {self.why}; {self.opens}", 90, state="unsupported", files=files)


ROWS = (
    Row(
        "tensorrt",
        "TensorRT engine",
        (".engine", ".plan", ".trt"),
        contents.tensorrt,
        "it is compiled for one kind of GPU, and its layout is NVIDIA's secret",
        "TensorRT opens it, on the kind of GPU that it was built on. Convert the model that it was built from",
        magics=(contents.TENSORRT,),
    ),
    Row(
        "dynet",
        "DyNet",
        (),
        contents.dynet,
        "where a parameter begins is known when all numbers before it are read",
        "DyNet's populate opens it, in the program that built the network",
        magics=contents.DYNET,
    ),
    Row(
        "mnn",
        "MNN",
        (".mnn",),
        contents.mnn,
        "its weights stand among the operators, packed as they ask for",
        "MNN opens it",
        companions=contents.mnn_files,
    ),
    Row(
        "ncnn",
        "ncnn",
        (".param", ".param.bin"),
        contents.ncnn,
        "its weights have neither names nor shapes of their own",
        "ncnn opens it",
        companions=contents.ncnn_files,
    ),
    Row(
        "rknn",
        "RKNN",
        (".rknn",),
        contents.rknn,
        "it is compiled for one kind of chip, and its layout is Rockchip's secret",
        "Rockchip's RKNN runtime opens it, on its chips",
    ),
    Row(
        "nemo",
        "NeMo archive",
        (".nemo",),
        contents.nemo,
        "a tar is not looked into",
        "NVIDIA NeMo opens it; unpacked (tar -xf), its model_weights.ckpt is a PyTorch checkpoint",
    ),
    Row(
        "torchserve",
        "TorchServe archive",
        (".mar",),
        contents.torchserve,
        "it holds a handler's code beside the weights",
        "TorchServe opens it, and runs the code in it; unpacked (unzip), the weights in it can be listed",
    ),
    Row(
        "pt2",
        "PyTorch exported program",
        (".pt2",),
        contents.pt2,
        "it is a program, with its weights as the exporter keeps them",
        "torch.export.load opens it",
    ),
    Row(
        "llamafile",
        "llamafile",
        (".llamafile",),
        contents.llamafile,
        "the model is inside of an executable",
        "it is a program, and a zip: unzip takes the GGUF model out of it",
        magics=(contents.APE,),
    ),
    Row(
        "darknet",
        "Darknet weights",
        (".weights",),
        contents.darknet,
        "its numbers have neither names nor shapes of their own",
        "Darknet opens it with the .cfg that it was trained with",
    ),
    Row(
        "mxnet",
        "MXNet parameters",
        (".params",),
        contents.mxnet,
        "MXNet is retired, and nobody asked for them yet",
        "MXNet opens it (mx.nd.load)",
    ),
    Row(
        "torch7",
        "Torch7",
        (".t7",),
        contents.torch7,
        "it is a graph of Lua's objects, functions among them",
        "Lua's Torch opens it",
    ),
    Row(
        "catboost",
        "CatBoost",
        (".cbm",),
        contents.catboost,
        "it is made of decision trees, and has no tensors",
        "CatBoost opens it",
        magics=(contents.CATBOOST,),
    ),
    Row(
        "hailo",
        "Hailo executable",
        (".hef",),
        contents.hailo,
        "it is compiled for Hailo's chips",
        "HailoRT opens it there. Convert the model that it was built from",
        magics=(contents.HAILO,),
    ),
    Row(
        "snpe",
        "Qualcomm container",
        (".dlc",),
        contents.snpe,
        "its layout is Qualcomm's own",
        "SNPE and QNN open it, on Qualcomm's chips",
    ),
    Row(
        "mediapipe",
        "MediaPipe task",
        (".task",),
        contents.mediapipe,
        "its models stand inside of a zip",
        "MediaPipe opens it; unpacked (unzip), its .tflite models can be read",
    ),
    Row(
        "litertlm",
        "LiteRT-LM",
        (".litertlm",),
        contents.litertlm,
        "its models stand inside of it, among others' parts",
        "LiteRT-LM opens it",
        magics=(contents.LITERTLM,),
    ),
)
