"""Weights under the names that people know them by: a layer's own name and the variable's (``dense_1/kernel``).

Older files keep them in attributes (``weight_names`` of each group in ``layer_names``; ``saving/legacy/legacy_h5_format.py``).
Newer ones number a layer's variables, under groups that are called after its class, and keep its own name beside them
(``saving/saving_lib.py``); what the numbers mean follows from the class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from modelhub import Finding

from modelhub_keras import attributes
from modelhub_keras.container import Container
from modelhub_keras.groups import group_at

STATE = ("optimizer_weights/", "optimizer/", "metrics/")
"""Groups of what training goes on with, and the model does without."""
CHECK = "keras-names"
_SUFFIX = re.compile(r":\d+$")
_NUMBER = re.compile(r"_\d+$")
_CONTAINERS = ("layers", "_layers", "cells")
_WRAPPED = "layer"
"""What wrappers (``TimeDistributed``) call the layer in them, of any class: its own name has to tell."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_BIASED = (("kernel",), ("kernel", "bias"))
_NORM = (("gamma",), ("gamma", "beta"))
_VARIABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(
        ("dense", "conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose", "einsum_dense",
         "depthwise_conv1d", "depthwise_conv2d"), _BIASED),
    "separable_conv1d": (("depthwise_kernel", "pointwise_kernel"), ("depthwise_kernel", "pointwise_kernel", "bias")),
    "separable_conv2d": (("depthwise_kernel", "pointwise_kernel"), ("depthwise_kernel", "pointwise_kernel", "bias")),
    "embedding": (("embeddings",),),
    "batch_normalization": (("moving_mean", "moving_variance"), ("gamma", "beta", "moving_mean", "moving_variance")),
    "layer_normalization": (("gamma", "beta"),),
    "group_normalization": (("gamma", "beta"),),
    "rms_normalization": (("scale",),),
    "p_re_lu": (("alpha",),),
    **dict.fromkeys(
        ("cell", "lstm_cell", "gru_cell", "simple_rnn_cell"),
        (("kernel", "recurrent_kernel"), ("kernel", "recurrent_kernel", "bias"))),
}  # fmt: skip
"""By the name that Keras derives from a class: its variables in the order in which it makes them."""
_FLOAT8 = (
    "inputs_scale",
    "inputs_amax_history",
    "kernel_scale",
    "kernel_amax_history",
    "outputs_grad_scale",
    "outputs_grad_amax_history",
)
_QUANTIZED: dict[tuple[str, str], tuple[str, ...]] = {
    ("dense", "if"): ("kernel", "kernel_scale"),
    ("dense", "iff"): ("kernel", "bias", "kernel_scale"),
    ("dense", "ifif"): ("kernel", "kernel_scale", "kernel_zero", "g_idx"),
    ("dense", "iffif"): ("kernel", "bias", "kernel_scale", "kernel_zero", "g_idx"),
    ("dense", "f" * 7): ("kernel", *_FLOAT8),
    ("dense", "f" * 8): ("kernel", "bias", *_FLOAT8),
    ("embedding", "if"): ("embeddings", "embeddings_scale"),
    ("embedding", "ifif"): ("embeddings", "embeddings_scale", "embeddings_zero", "g_idx"),
}  # fmt: skip
"""What Keras quantized (``quantize("int8")``, "int4", "float8"): by the class, and by which variables are integers (``i``) and
which floats (``f``), their names."""


def readable(
    file: Container, kinds: Mapping[str, str], layers: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[Finding]]:
    """Names for the datasets at the paths of ``kinds`` (path -> dtype), in the order in which the model has them; and what does
    not fit. Where two would be called the same, both keep the paths that they have. ``layers``: names of groups, from the
    model's configuration."""
    paths = list(kinds)
    inner = group_at(file, "model_weights")
    base, root = ("model_weights", inner) if inner is not None and _has_layers(file, inner) else ("", file.root)
    findings: list[Finding] = []
    if _has_layers(file, root):
        found = _listed(file, root, base, set(paths), findings)
        found |= {path: path for path in paths if path not in found}
    else:
        found = numbered(paths, owners(file, paths, layers or {}), kinds)
    return unique(found), findings


def unique(found: Mapping[str, str]) -> dict[str, str]:
    """Path -> name, or the path again where several would have the name."""
    counts = Counter(found.values())
    return {path: name if counts[name] == 1 else path for path, name in found.items()}


def is_state(path: str) -> bool:
    return path.startswith(STATE)


def _has_layers(file: Container, group: int) -> bool:
    return attributes.has(file, group, "layer_names", "layer_names0")


def _listed(file: Container, root: int, base: str, paths: set[str], findings: list[Finding]) -> dict[str, str]:
    """By ``layer_names`` and ``weight_names``."""
    found: dict[str, str] = {}
    lost: list[str] = []
    for layer in [*_texts(attributes.text(file, root, "layer_names")), "top_level_model_weights"]:
        group = group_at(file, layer, root)
        for weight in _texts(attributes.text(file, group, "weight_names")) if group is not None else ():
            path = "/".join(filter(None, (base, layer, weight)))
            if path in paths:
                found[path] = weight_name(layer, weight)
            else:
                lost.append(path)
    if lost:
        message = f"{len(lost)} weights are listed and not there, {lost[0][:200]!r} for one"
        findings.append(Finding(CHECK, "error", message, file=file.name))
    return found


def _texts(value: str | list[str] | None) -> Iterable[str]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def weight_name(layer: str, weight: str) -> str:
    """A listed weight's name from its layer on: ``model/dense_1/kernel:0`` of the layer ``dense_1`` is ``dense_1/kernel``."""
    name = _SUFFIX.sub("", weight)
    at = f"/{name}".find(f"/{layer}/")
    if at >= 0:
        return name[at:]
    return name if layer == "top_level_model_weights" else f"{layer}/{name}"


def owners(file: Container, paths: Sequence[str], layers: Mapping[str, str]) -> dict[str, str]:
    """The group of numbered variables -> the names of the layers down to it, by what stands beside them."""
    found: dict[str, str] = {}
    for path in paths:
        group = _group_of_variable(path)
        if group and group not in found:
            found[group] = _owner(file, group.removesuffix("vars").rstrip("/"), layers)
    return found


def numbered(paths: Sequence[str], owner: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, str]:
    """By the names of the layers, and the classes that their groups are called after. ``kinds``: dtypes by paths."""
    members: dict[str, list[str]] = {}
    for path in paths:
        members.setdefault(path.rpartition("/")[0], []).append(path)
    found: dict[str, str] = {}
    for path in paths:
        group = _group_of_variable(path)
        if group not in owner:
            found[path] = path
            continue
        mine = sorted(members[group], key=_number) if all(_group_of_variable(one) for one in members[group]) else members[group]
        letters = "".join("i" if kinds[one] == "I8" else "f" if kinds[one] in _FLOATS else "?" for one in mine)
        node = group.removesuffix("vars").rstrip("/")
        kind = owner[group] if node.rpartition("/")[2] == _WRAPPED else node
        variable = _variable(kind, _number(path), letters)
        found[path] = "/".join(filter(None, (owner[group], variable)))
    return found


def _number(path: str) -> int:
    return int(path.rpartition("/")[2])


def _group_of_variable(path: str) -> str:
    """The group of a numbered variable; "" for any other dataset, and for those of training."""
    group, _, number = path.rpartition("/")
    fits = (group == "vars" or group.endswith("/vars")) and number.isdigit() and number.isascii() and len(number) < 10
    return group if fits and not is_state(path) else ""


def _owner(file: Container, node: str, layers: Mapping[str, str]) -> str:
    """The names of the layers down to a group, outermost first; the model's own is left out."""
    names, at = [], ""
    for part in node.split("/") if node else []:
        at = f"{at}/{part}" if at else part
        variables = group_at(file, f"{at}/vars")
        own = attributes.text(file, variables, "name") if variables is not None else None
        if isinstance(own, str) and own:
            names.append(own)
        elif at in layers:
            names.append(layers[at])
        elif part not in _CONTAINERS:
            names.append(part)
    return "/".join(names)


def _variable(node: str, number: int, letters: str) -> str:
    """What the ``number``-th of a layer's variables is called; the number where its class is not known by its group. ``letters``:
    one for each of them, as in `_QUANTIZED`."""
    kind = _NUMBER.sub("", node.rpartition("/")[2])
    if kind.endswith("_dense"):  # the projections of attention
        kind = "dense"
    like = "dense" if kind == "einsum_dense" else kind
    known = _QUANTIZED.get((like, letters), ())
    known = known or next((names for names in _VARIABLES.get(kind, ()) if len(names) == len(letters)), ())
    return known[number] if number < len(known) else str(number)
