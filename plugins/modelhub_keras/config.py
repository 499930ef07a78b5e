"""A model's configuration as Keras writes it (JSON): its layers, and what in it becomes code when the model is loaded.

Nothing in it is decoded or imported. Where code can hide is known from Keras's own loader (``saving/serialization_lib.py``,
``deserialize_keras_object``; ``layers/core/lambda_layer.py``; ``utils/torch_utils.py``): functions as marshalled bytecode,
objects that are looked up in any module the configuration names, modules pickled as text, files that a layer reads once made.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelhub import Finding, InvalidFile

from modelhub_keras import known

CHECK = "keras-code"
MAX_NODES = 2_000_000
MAX_FINDINGS = 200
KEPT = 200
_OURS = ("keras", "tf_keras", "tensorflow", "keras_hub", "keras_nlp", "keras_cv", "keras_core", "tensorflow_model_optimization")
"""Packages whose own objects are not "custom"."""
_CODE = {"__lambda__": "a Python function as marshalled bytecode", "Lambda": "a Lambda layer, whose code is a part of the file"}
_PICKLED = ("TorchModuleWrapper", "__torch_module__")
_AWARE = ("QuantizeWrapper", "QuantizeWrapperV2", "QuantizeLayer", "QuantizeAnnotate")
"""What TensorFlow Model Optimization wraps layers in (``quantization/keras/quantize_wrapper.py``)."""
_PLAIN = ("dict", "list", "tuple", "int", "float", "str", "bool", "slice")
_OURS_REGISTERED = ("keras", "builtins>")
_READS = ("StringLookup", "IntegerLookup", "TextVectorization")
_TF_CALLS = ("io.", "raw_ops.", "py_function", "numpy_function", "load_library", "load_op_library", "saved_model.", "data.")
_STRUCTURE = (
    "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__tuple__", "__ellipsis__", "__slice__", "__typespec__",
    "__complex__", "TensorShape", "CompositeTensor", "__symbolic_keras_tensor__",
)  # fmt: skip


@dataclass(slots=True)
class Config:
    """What was found: ``layers``: class -> how many; ``custom``: what is not Keras's own, and where it stands;
    ``groups``: the group of a layer in a file of numbered variables -> its name."""

    kind: str = ""
    name: str = ""
    layers: Counter[str] = field(default_factory=Counter)
    custom: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unsafe: set[tuple[str, ...]] = field(default_factory=set)
    input_shape: list[Any] | None = None
    quantization: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    dtype: str = ""


def load(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``text``; `InvalidFile` where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{what} is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise InvalidFile(f"{what} is not an object")
    return found


def examine(data: Mapping[str, Any], file: str) -> Config:
    """Everything there is to know of a model's configuration."""
    config = Config(kind=_word(data.get("class_name")))
    inner = data.get("config")
    if isinstance(inner, Mapping):
        config.name = _word(inner.get("name"))
    for node, path in _nodes(data):
        if "class_name" in node:
            _object(config, node, path, file)
        elif node.get("function_type") == "lambda":
            _unsafe(config, path, "a Python function as marshalled bytecode", file)
    config.input_shape = _input_shape(inner)
    config.groups = _groups(inner)
    if isinstance(data.get("module"), str) and config.kind not in ("Sequential", "Functional", "Model"):
        config.layers.pop(config.kind, None)
    return config


def _nodes(data: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """Every object inside, with the names of the layers that it stands in. The stack is ours, so depth costs nothing."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(data, ())]
    left = MAX_NODES
    while stack:
        node, path = stack.pop()
        left -= 1
        if left < 0:
            raise InvalidFile(f"a model's configuration of more than {MAX_NODES} parts")
        if isinstance(node, list):
            stack.extend((item, path) for item in reversed(node) if isinstance(item, (dict, list)))
        elif isinstance(node, dict):
            inner = node.get("config")
            name = inner.get("name") if isinstance(inner, dict) and "class_name" in node else None
            if isinstance(name, str) and len(path) < 32 and _is_layer(node):
                path = (*path, name[:KEPT])
            yield node, path
            stack.extend((item, path) for item in reversed(node.values()) if isinstance(item, (dict, list)))


def _is_layer(node: Mapping[str, Any]) -> bool:
    """Layers and models are objects with a name that is theirs; policies of dtypes and optimisers have one as well."""
    module, kind = _word(node.get("module")), _word(node.get("class_name"))
    return not kind.endswith(("Policy", "PolicyMap")) and "optimizers" not in module and "dtype_policies" not in module


def _object(config: Config, node: Mapping[str, Any], path: tuple[str, ...], file: str) -> None:
    kind = _word(node.get("class_name"))
    inner = node.get("config")
    named = isinstance(inner, Mapping) and isinstance(inner.get("name"), str) and _is_layer(node)
    if named and "compile_config" not in node and len(path) > 1:
        config.layers[kind] += 1
    if kind in _CODE or kind.endswith(">Lambda"):
        _unsafe(config, path, _CODE.get(kind, _CODE["Lambda"]), file)
    elif kind in _PICKLED:
        _unsafe(config, path, "a PyTorch module as a pickle", file)
    elif kind == "TFSMLayer":
        place = _word(inner.get("filepath")) if isinstance(inner, Mapping) else ""
        _unsafe(config, path, f"a layer that loads TensorFlow's program at {place!r}", file)
    elif kind == "TFOpLambda" and isinstance(inner, Mapping):
        function = _word(inner.get("function"))
        if function.startswith(_TF_CALLS):
            _unsafe(config, path, f"a call of TensorFlow's {function}", file)
    elif kind in _READS and isinstance(inner, Mapping) and isinstance(inner.get("vocabulary"), str):
        _unsafe(config, path, f"a {kind} layer that reads {inner['vocabulary'][:KEPT]!r} when it is made", file)
    if kind in _AWARE:
        config.quantization = config.quantization or "quantization-aware training"
    elif kind.endswith("DTypePolicy") and isinstance(inner, Mapping):  # "int4/128" has the size of its groups as well
        config.quantization = config.quantization or _word(inner.get("mode"))
    if kind not in _STRUCTURE:
        _foreign(config, node, path, file, named)


def _foreign(config: Config, node: Mapping[str, Any], path: tuple[str, ...], file: str, named: bool) -> None:
    """What is not Keras's own: somebody's layers and functions, or what no honest model names."""
    kind, module, registered = (_word(node.get(key)) for key in ("class_name", "module", "registered_name"))
    inner, where, top = node.get("config"), "/".join(path), module.partition(".")[0]
    if top == "builtins" and kind == "function":
        config.custom.setdefault(f"function {_word(inner)}" if isinstance(inner, str) else kind, where)
    elif top in sys.stdlib_module_names:
        if top != "builtins" or kind not in _PLAIN:
            _unsafe(config, path, f"{module}.{kind}, which Keras would import from Python's own library", file)
    elif top and top not in _OURS:
        config.custom.setdefault(f"{module}.{kind}", where)
    elif ">" in kind or ">" in registered:
        if not (registered or kind).startswith(_OURS_REGISTERED):
            config.custom.setdefault(registered or kind, where)
    elif not module and kind and (registered or named) and kind not in known.NAMES and kind not in _AWARE:
        # Newer files say null for the module of what nobody registered; older ones say no modules at all.
        config.custom.setdefault(kind, where)


def _unsafe(config: Config, path: tuple[str, ...], what: str, file: str) -> None:
    where = f"layer {'/'.join(path)[:KEPT]!r}" if path else "the configuration"
    if path in config.unsafe or len(config.findings) >= MAX_FINDINGS:  # one word on each layer: its function is a part of it
        return
    config.unsafe.add(path)
    message = f"{where} holds {what}: it runs when the model is loaded or used; not decoded here"
    config.findings.append(Finding(CHECK, "unsafe", message, file=file))


def _groups(model: Any) -> dict[str, str]:
    """Groups are called after the layers' classes, numbered where there are several (``saving_lib.py``,
    ``_save_container_state``); what a wrapper holds is called by the wrapper's attribute."""
    found: dict[str, str] = {}
    stack: list[tuple[Any, str]] = [(model, "")]
    while stack and len(found) < MAX_NODES:
        inner, prefix = stack.pop()
        if not isinstance(inner, Mapping) or prefix.count("/") > 64:
            continue
        used: Counter[str] = Counter()
        for layer in inner["layers"] if isinstance(inner.get("layers"), list) else ():
            if not isinstance(layer, Mapping):
                continue
            kind = _snake(_word(layer.get("class_name")).rpartition(">")[2])
            at = f"{prefix}layers/{kind}{f'_{used[kind]}' if used[kind] else ''}"
            used[kind] += 1
            _group(found, stack, layer.get("config"), at)
        wrapped = inner.get("layer")
        if isinstance(wrapped, Mapping) and isinstance(own := wrapped.get("config"), Mapping) and prefix:
            _group(found, stack, own, f"{prefix}layer")
            for way in ("forward", "backward"):
                found[f"{prefix}{way}_layer"] = f"{way}_{_word(own.get('name')).removeprefix('forward_')}"
    return found


def _group(found: dict[str, str], stack: list[tuple[Any, str]], inner: Any, at: str) -> None:
    if isinstance(inner, Mapping) and _word(inner.get("name")):
        found[at] = _word(inner["name"])
        stack.append((inner, f"{at}/"))


def _snake(name: str) -> str:
    """As Keras makes a group's name of a class's (``utils/naming.py``, ``to_snake_case``)."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _input_shape(inner: Any) -> list[Any] | None:
    """The shape of the first input, None for a side that is left open."""
    if not isinstance(inner, Mapping):
        return None
    layers = inner.get("layers") if isinstance(inner.get("layers"), list) else []
    for layer in [{"config": inner}, *(layers or [])[:1000]]:
        found = layer.get("config") if isinstance(layer, Mapping) else None
        for key in ("batch_shape", "batch_input_shape", "build_input_shape"):
            shape = found.get(key) if isinstance(found, Mapping) else None
            if isinstance(shape, list) and len(shape) <= 32 and all(side is None or type(side) is int for side in shape):
                return shape
    return None


def _word(value: Any) -> str:
    return value[:KEPT] if isinstance(value, str) else ""
