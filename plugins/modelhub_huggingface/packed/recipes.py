"""Recipes that pack a model's linear layers by rounding to nearest: GPTQ's layout, and compressed-tensors' under the names of
llm-compressor's schemes.

Embeddings, norms, routers and the output keep their dtype, as these tools leave them. What does not divide into groups is left as
well, and said.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from modelhub import File, Inline, ModelhubError, Node, Recipe, RecipeOptions, Table, Tensor, ops, read_json

from modelhub_huggingface.layout import CONFIG, MAX_CONFIG
from modelhub_huggingface.packed.scheme import FLOATS

GROUP = 128
_KEPT = re.compile(
    r"(^|\.)(lm_head|embed_tokens|embed_\w+|wte|wpe|shared|router|gate|score|classifier|\w*norm\w*|ln_\w+)\.weight$"
)
"""Layers that quantizers leave alone, by the names that transformers' models give them."""


class Layout(NamedTuple):
    """A way to pack one matrix: ``parts(module, tensor, group)``, what ``config.json`` says of it, and the file in which older
    loaders look for that ("" where there is none)."""

    parts: Callable[[str, Node, int, str], Iterator[Tensor]]
    group: int
    said: Callable[[list[str]], dict[str, Any]]
    older: str = ""


def _gptq(bits: int) -> Layout:
    def parts(module: str, matrix: Node, group: int, scales: str) -> Iterator[Tensor]:
        rows, columns = matrix.shape
        made = {
            part: ops.node("quantize.gptq", matrix, part=part, bits=bits, group=group, scales=scales)
            for part in ("words", "scales")
        }
        zero = (1 << (bits - 1)) - 1  # less one, as the first layout stores it
        word = sum(zero << place for place in range(0, 32, bits))
        zeros = Inline(struct.pack("<I", word) * (columns // group * rows * bits // 32))
        index = Inline(b"".join(struct.pack("<i", place // group) for place in range(columns)))
        yield _tensor(f"{module}.qweight", made["words"])
        yield Tensor(f"{module}.qzeros", "I32", (columns // group, rows * bits // 32), zeros)
        yield _tensor(f"{module}.scales", made["scales"])
        yield Tensor(f"{module}.g_idx", "I32", (columns,), index)

    def said(left: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": True, "damp_percent": 0.1,
            "checkpoint_format": "gptq", "true_sequential": True, "lm_head": False,
        }  # fmt: skip

    return Layout(parts, GROUP, said, "quantize_config.json")


def _compressed(bits: int | str, group: int) -> Layout:
    def parts(module: str, matrix: Node, group: int, scales: str) -> Iterator[Tensor]:
        kind = "numbers" if bits == "e4m3" else "words"
        made = {
            part: ops.node("quantize.rows", matrix, part=part, bits=bits, group=group, scales=scales) for part in (kind, "scales")
        }
        yield _tensor(f"{module}.weight" if bits == "e4m3" else f"{module}.weight_packed", made[kind])
        yield _tensor(f"{module}.weight_scale", made["scales"])
        if bits != "e4m3":
            yield Tensor(f"{module}.weight_shape", "I64", (2,), Inline(struct.pack("<2q", *matrix.shape)))

    def said(left: list[str]) -> dict[str, Any]:
        weights: dict[str, Any] = {
            "num_bits": 8 if bits == "e4m3" else bits, "type": "float" if bits == "e4m3" else "int", "symmetric": True,
            "strategy": "group" if group else "channel", "group_size": group or None, "dynamic": False,
        }  # fmt: skip
        inputs = None
        if bits == "e4m3":
            inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
        layout = "float-quantized" if bits == "e4m3" else "pack-quantized"
        group_0 = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": layout,
        }
        return {
            "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
            "config_groups": {"group_0": group_0}, "ignore": left, "kv_cache_scheme": None,
        }  # fmt: skip

    return Layout(parts, group, said)


LAYOUTS: dict[str, tuple[str, Layout]] = {
    "gptq-int4": ("GPTQ's layout, 4 bits in groups of 128, rounded to nearest", _gptq(4)),
    "gptq-int8": ("GPTQ's layout, 8 bits in groups of 128, rounded to nearest", _gptq(8)),
    "w4a16": ("compressed-tensors INT4 in groups of 128, rounded to nearest", _compressed(4, GROUP)),
    "w8a16": ("compressed-tensors INT8, a scale a row, rounded to nearest", _compressed(8, 0)),
    "fp8": ("compressed-tensors FP8 (E4M3), a scale a row", _compressed("e4m3", 0)),
}


def recipes() -> Iterator[Recipe]:
    """The recipes of `LAYOUTS`, for Hugging Face directories."""
    for name, (title, layout) in LAYOUTS.items():
        yield Recipe(name=name, title=title, formats=("huggingface",), derive=_derive(layout))


def _derive(layout: Layout) -> Callable[[Table, RecipeOptions], Table]:
    def derive(table: Table, options: RecipeOptions) -> Table:
        tensors: list[Tensor] = []
        left, odd, packed = [], [], 0
        ties = set(table.ties) | set(table.ties.values())
        for tensor in table.logical:
            module = tensor.name.removesuffix(".weight")
            if not tensor.name.endswith(".weight") or len(tensor.shape) != 2 or tensor.value is None:
                tensors.append(tensor)
                continue
            group = layout.group or tensor.shape[1]
            fits = tensor.shape[1] % group == 0 and tensor.shape[1] % 8 == 0 and tensor.shape[0] % 8 == 0
            if _KEPT.search(tensor.name) or tensor.name in ties or tensor.dtype not in FLOATS or not fits:
                if not _KEPT.search(tensor.name) and not fits:
                    odd.append(tensor.name)
                left.append(module)
                tensors.append(tensor)
                continue
            scales = tensor.dtype if tensor.dtype != "F32" else "F16"
            matrix = ops.typed(tensor.value, tensor.dtype, tensor.shape)
            tensors += layout.parts(module, matrix, group, scales)
            packed += 1
        if not packed:
            raise ModelhubError(
                "there is no linear layer that can be packed: no matrix called NAME.weight divides into its groups"
            )
        notes = table.notes
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            notes = (*notes, f"left as it is, for it does not divide into groups of {layout.group}: {odd[0]}{more}")
        return replace(table, tensors=tuple(tensors), documents=_documents(table, layout.said(left), layout.older), notes=notes)

    return derive


def _documents(table: Table, said: dict[str, Any], older: str) -> dict[str, bytes]:
    """``config.json`` with what loaders need to know, in place of the source's, and the same in the file called ``older``."""
    config: dict[str, Any]
    if CONFIG in table.documents:
        config = json.loads(table.documents[CONFIG])
    else:
        paths = [path for path in table.files if os.path.basename(path) == CONFIG]
        if not paths:
            raise ModelhubError("a packed model needs a config.json, and the source has none", "put it beside the weights")
        with File(min(paths, key=lambda path: path.count("/"))) as file:
            config = read_json(file, limit=MAX_CONFIG)
    config["quantization_config"] = said
    made = {CONFIG: config, **({older: said} if older else {})}
    texts = {name: json.dumps(text, indent=2, ensure_ascii=False) for name, text in made.items()}
    return {**table.documents, **{name: text.encode("utf-8", "backslashreplace") + b"\n" for name, text in texts.items()}}


def _tensor(name: str, value: Node) -> Tensor:
    return Tensor(name, value.dtype, value.shape, value)
