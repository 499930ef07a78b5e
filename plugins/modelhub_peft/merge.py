"""Puts PEFT adapters on the table of their base, as ``merge_and_unload`` of peft does on a model in memory. Builds expressions;
reads no weight.

    LoRA   W + s B A, with s = alpha / rank (rsLoRA: alpha / sqrt(rank)); for matrices kept transposed W + s (B A)^T
    DoRA   that, with every row brought to the length that was learnt for it
    IA3    W with its rows (or, in feed-forward modules, its columns) multiplied with a vector

(peft ``tuners/lora/layer.py`` and ``variants.py``, ``tuners/ia3/layer.py``.) All is computed in float32 and rounded once to the
base's dtype; peft rounds after each adapter. Tensors of ``modules_to_save`` take the place of the base's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from modelhub import Combination, File, Node, Table, Tensor, ops, read_json

from modelhub_peft import output
from modelhub_peft.config import CONFIG, MAX_CONFIG, AdapterConfig, parse, unmergeable
from modelhub_peft.names import Names
from modelhub_peft.scaling import brought_to, scaled

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l)"
    r"(?:\.default)?(?:\.(?P<leaf>weight|bias))?",
    re.DOTALL,
)
_FOREIGN = re.compile(r"(^|\.)(lora|ia3|hada|lokr|oft|boft|vera|trainable_tokens|prompt|fourierft|hra|miss|bone)_", re.IGNORECASE)
PREFIXES = ("base_model.model.", "base_model.")


@dataclass(slots=True)
class Change:
    """What an adapter has for one module: its tensors by part (lora_A, lora_B.bias, ...)."""

    module: str
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's table, sorted: changes by module, and tensors that take the place of the base's."""

    config: AdapterConfig
    changes: Sequence[Change]
    replacements: Sequence[Tensor]


def adapter_of(table: Table) -> Adapter:
    """ValueError for an adapter that cannot be merged, with the reason."""
    path = next((path for path in table.files if path.rsplit("/", 1)[-1] == CONFIG), None)
    if path is None:
        raise ValueError(f"it has no {CONFIG}")
    with File(path) as file:
        config = parse(read_json(file, limit=MAX_CONFIG))
    if why := unmergeable(config):
        raise ValueError(why)
    changes: dict[str, Change] = {}
    replacements = []
    for tensor in table.logical:
        name = next((tensor.name.removeprefix(prefix) for prefix in PREFIXES if tensor.name.startswith(prefix)), tensor.name)
        if found := _PART.fullmatch(name):
            part = found["part"] + (".bias" if found["leaf"] == "bias" else "")
            changes.setdefault(found["module"], Change(found["module"])).parts[part] = tensor
        elif _FOREIGN.search(name):
            raise ValueError(f"{tensor.name} is no part of LoRA, DoRA or IA3")
        else:
            replacements.append(tensor._replace(name=re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)))
    if not changes and not replacements:
        raise ValueError("it holds no tensors")
    return Adapter(config, tuple(changes.values()), tuple(replacements))


def derive(base: Table, parts: Sequence[tuple[Table, float]]) -> Table:
    """The base's table with adapters on it, one after another."""
    merging = _Merging(base)
    adapters = [(adapter_of(table), scale) for table, scale in parts]
    for adapter, _ in adapters:  # first: what others change is what was put there
        merging.replace(adapter)
    for adapter, scale in adapters:
        merging.change(adapter, scale)
    return output.finished(base, merging.values, merging.replaced, merging.trained)


COMBINATION = Combination(name="peft", source="peft", derive=derive)


class _Merging:
    """What has become of a base's tensors so far."""

    def __init__(self, base: Table) -> None:
        self.names = Names(base)
        self.values: dict[str, Node] = {}
        """F32, by the names of the tensors that were changed."""
        self.replaced: dict[str, Tensor] = {}
        self.trained: set[str] = set()
        """Those of the replaced ones that are modules of their own from now on, whatever they were tied to."""

    def replace(self, adapter: Adapter) -> None:
        for tensor in adapter.replacements:
            name, trained = self.names.replacement(tensor, adapter.config.raw)
            if trained:
                self.trained.add(name)
            for each in (name,) if trained else self.names.tied(name):
                if trained or each not in self.trained:
                    self.replaced[each] = tensor._replace(name=each)

    def change(self, adapter: Adapter, scale: float) -> None:
        if adapter.config.kind == "IA3" and scale != 1:
            raise ValueError("IA3 has no strength that could be scaled")
        for change in adapter.changes:
            try:
                self._change(change, adapter.config, scale)
            except ValueError as error:
                raise ValueError(f"{change.module}: {error}") from error

    def _change(self, change: Change, config: AdapterConfig, scale: float) -> None:
        parts = dict(change.parts)
        if "ia3_l" in parts:
            self._multiplied(change.module, _node(parts.pop("ia3_l")), config)
        elif "lora_A" in parts or "lora_embedding_A" in parts:
            embedding = "lora_embedding_A" in parts
            prefix = "lora_embedding_" if embedding else "lora_"
            a, b = _node(parts.pop(f"{prefix}A")), _node(_taken(parts, f"{prefix}B"))
            flip = embedding or config.fan_in_fan_out
            rank = a.shape[0] if a.shape else 0
            if not rank:
                raise ValueError("its matrices are empty")
            factor = config.scale_of(change.module, rank) * scale
            magnitude = parts.pop("lora_magnitude_vector", None)
            if config.dora and magnitude is None:
                raise ValueError("it is DoRA, and its magnitudes are missing")
            self._added(change.module, a, b, factor, flip, _node(magnitude) if magnitude else None)
            if bias := parts.pop("lora_B.bias", None):
                name = self.names.of(change.module, "bias")
                self.values[name] = ops.add(self._now(name), ops.affine(_node(bias), factor))
        if parts:
            raise ValueError(f"{next(iter(parts))} has no counterpart")

    def _now(self, name: str) -> Node:
        return self.values.get(name) or self._original(name)

    def _original(self, name: str) -> Node:
        return _node(self.replaced.get(name) or self.names.tensors[name])

    def _added(self, module: str, a: Node, b: Node, factor: float, flip: bool, magnitude: Node | None) -> None:
        sides = (a.shape[1], b.shape[0]) if flip and len(a.shape) == 2 and b.shape else (b.shape[:1] + a.shape[1:])
        name = self.names.of(module, "weight", shape=sides)
        before, original, untouched = self._now(name), self._original(name), name not in self.values
        shape = original.shape
        if len(shape) > 2:
            if flip or prod(b.shape[2:]) != 1:
                raise ValueError(f"factors {list(b.shape)} and {list(a.shape)} of a convolution {list(shape)} cannot be merged")
            flat = (shape[0], prod(shape[1:]))
            before, original = (ops.reshape(node, node.dtype, flat) for node in (before, original))
            a, b = ops.reshape(a, a.dtype, (a.shape[0], prod(a.shape[1:]))), ops.reshape(b, b.dtype, b.shape[:2])
        # The factor that is sliced comes first; the other one, which is small, is held in memory. What both are scaled with
        # is cheaper put into one of them than into their product.
        left, right = (ops.transpose(a), ops.transpose(b)) if flip else (b, a)
        delta = ops.matmul(ops.affine(left, factor) if factor != 1 else left, right)
        if delta.shape != original.shape:
            raise ValueError(f"it changes a matrix {list(delta.shape)}, the base's {name} is {list(shape)}")
        after = ops.add(before, delta)
        if magnitude is not None:
            # Every adapter's lengths were learnt on the base as it was, whatever was merged before.
            measured = after if untouched else ops.add(original, delta)
            lengths = ops.affine(ops.reshape(magnitude, magnitude.dtype, (prod(magnitude.shape),)))
            if flip:
                after = ops.transpose(brought_to(ops.transpose(after), lengths, ops.transpose(measured)))
            else:
                after = brought_to(after, lengths, measured)
        self._set(name, after if after.shape == shape else ops.reshape(after, "F32", shape))

    def _multiplied(self, module: str, by: Node, config: AdapterConfig) -> None:
        feed_forward = len(by.shape) > 1 and by.shape[0] == 1
        vector = ops.affine(ops.reshape(by, by.dtype, (prod(by.shape),)))
        name = self.names.of(module, "weight")
        now = ops.affine(self._now(name))
        if len(now.shape) != 2:
            raise ValueError(f"IA3 on {name} {list(now.shape)}, which is no matrix, cannot be merged")
        self._set(name, scaled(now, vector, int(feed_forward != config.fan_in_fan_out)))
        bias = self.names.find(module, "bias")
        if bias and not feed_forward:
            self._set(bias, scaled(ops.affine(self._now(bias)), vector, 0))

    def _set(self, name: str, value: Node) -> None:
        for each in self.names.tied(name):
            self.values[each] = value


def _taken(parts: dict[str, Tensor], part: str) -> Tensor:
    if part not in parts:
        raise ValueError(f"its {part} is missing")
    return parts.pop(part)


def _node(tensor: Tensor) -> Node:
    if tensor.value is None:
        raise ValueError(f"{tensor.name} is a {tensor.unsupported}")
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)
