"""Puts PEFT adapters on the table of their base, as ``merge_and_unload`` of peft does on a model in memory. Builds expressions;
reads no weight.

    LoRA, AdaLoRA, LoHa, LoKr, VeRA    W + a product of what the adapter holds (`products`)
    MiSS, HiRA                         W + what repeats along its columns; W + W * (B A), by elements (`products`)
    OFT, HRA                           W with its rows turned (`rotations`)
    DoRA                               that, with every row brought to the length that was learnt for it
    IA3                                W with its rows (or, in feed-forward modules, its columns) multiplied with a vector
    trained tokens                     W with some of its rows replaced

(peft ``tuners/lora/variants.py``, ``tuners/ia3/layer.py``, ``tuners/trainable_tokens/layer.py``.) All is computed in float32 and
rounded once to the base's dtype; peft rounds after each adapter. Tensors of ``modules_to_save`` and of LN tuning take the place
of the base's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from modelhub import Combination, File, Node, Table, Tensor, UnsupportedFile, ops, read_json

from modelhub_peft import experts, output, products
from modelhub_peft.config import CONFIG, MAX_CONFIG, MERGED, AdapterConfig, parse, unmergeable
from modelhub_peft.names import Names
from modelhub_peft.rotations import hra, oft
from modelhub_peft.scaling import brought_to, scaled, times, with_rows

_PART = re.compile(
    r"(?:(?P<module>.+)\.)?(?P<part>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l"
    r"|oft_R|hra_u|miss_block|hira_[AB]|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|vera_(?:A|B|lambda_[bd])|trainable_tokens_delta)"
    r"(?:\.default)?(?:\.(?P<leaf>weight|bias))?",
    re.DOTALL,
)
_WRAPPERS = re.compile(r"\.((modules_to_save|ln_tuning_layers)(\.default)?|base_layer|token_adapter)(?=\.)")
_UNTRAINED = ".original_module."
"""What a module was before it was trained; peft saves it with embeddings that are tied."""
_FOREIGN = re.compile(
    r"(^|\.)(lora|ia3|hada|lokr|oft|boft|vera|trainable_tokens|prompt|fourierft|hra|hira|miss|bone)_", re.IGNORECASE
)
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
    shared: Mapping[str, Node]
    """What belongs to no module (VeRA's projections)."""


def adapter_of(table: Table) -> Adapter:
    """UnsupportedFile for an adapter that cannot be merged, ValueError for one that is not whole, with the reason."""
    path = next((path for path in table.files if path.rsplit("/", 1)[-1] == CONFIG), None)
    if path is None:
        raise ValueError(f"it has no {CONFIG}")
    with File(path) as file:
        config = parse(read_json(file, limit=MAX_CONFIG))
    if why := unmergeable(config):
        raise UnsupportedFile(why)
    changes: dict[str, Change] = {}
    replacements = []
    shared: dict[str, Node] = {}
    for tensor in table.logical:
        name = next((tensor.name.removeprefix(prefix) for prefix in PREFIXES if tensor.name.startswith(prefix)), tensor.name)
        if found := _PART.fullmatch(name):
            part, module = found["part"] + (".bias" if found["leaf"] == "bias" else ""), found["module"]
            if part in ("vera_A", "vera_B"):  # one for all; older versions save it with every module as well
                shared[part] = _node(tensor)
            elif module is None:
                raise ValueError(f"{tensor.name} belongs to no module")
            else:
                changes.setdefault(module, Change(module)).parts[part] = tensor
        elif _FOREIGN.search(name):
            raise ValueError(f"{tensor.name} is no part of an adapter that can be merged")
        elif _UNTRAINED not in name:
            replacements.append(tensor._replace(name=_WRAPPERS.sub("", name)))
    if not changes and not replacements:
        raise ValueError("it holds no tensors")
    return Adapter(config, tuple(changes.values()), tuple(replacements), shared)


def derive(base: Table, parts: Sequence[tuple[Table, float]]) -> Table:
    """The base's table with adapters on it, one after another."""
    merging = _Merging(base)
    adapters = [(adapter_of(table), scale) for table, scale in parts]
    for adapter, _ in adapters:  # first: what others change is what was put there
        merging.replace(adapter)
    for adapter, scale in adapters:
        merging.change(adapter, scale)
    beside = [path for table, _ in parts for path in table.files]
    return output.finished(base, merging.values, merging.replaced, merging.trained, beside)


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
        if scale != 1 and adapter.config.kind in ("IA3", "OFT", "HRA", "TRAINABLE_TOKENS", "LN_TUNING"):
            raise ValueError(f"{MERGED[adapter.config.kind]}: there is no strength that could be scaled")
        for change in self._with_parameters(adapter, scale):
            try:
                self._change(change, adapter, scale)
            except ValueError as error:
                raise ValueError(f"{change.module}: {error}") from error

    def _with_parameters(self, adapter: Adapter, scale: float) -> Iterator[Change]:
        """Changes of modules; those of parameters are done."""
        if not experts.targets(adapter.config):
            yield from adapter.changes
            return
        nested: dict[str, list[Change]] = {}
        for change in adapter.changes:
            nested.setdefault(change.module.replace(experts.WRAPPED, ""), []).append(change)
        for module, changes in nested.items():
            if len(changes) == 1 and not experts.is_target(module, adapter.config) and self.names.find(module, "weight"):
                yield changes[0]
                continue
            try:
                pairs = [(_tensor(change.parts, "lora_A"), _tensor(change.parts, "lora_B")) for change in changes]
                for parameter, order, a, b in experts.assigned(module, pairs, self.names, adapter.config):
                    factor = adapter.config.scale_of(parameter.name, experts.rank_of(parameter.shape, a)) * scale
                    for name, delta in experts.added(parameter, order, a, b, factor):
                        shape = self.names.tensors[name].shape
                        now = ops.reshape(self._now(name), self._now(name).dtype, delta.shape)
                        after = ops.add(now, delta)
                        self._set(name, after if shape == delta.shape else ops.reshape(after, "F32", shape))
            except ValueError as error:
                raise ValueError(f"{module}: {error}") from error

    def _change(self, change: Change, adapter: Adapter, scale: float) -> None:
        config, module = adapter.config, change.module
        parts = {part: _node(tensor) for part, tensor in change.parts.items()}
        magnitude = parts.pop("lora_magnitude_vector", None)
        if config.dora and magnitude is None and ("lora_A" in parts or "lora_embedding_A" in parts):
            raise ValueError("it is DoRA, and its magnitudes are missing")
        if "ia3_l" in parts:
            self._multiplied(module, parts.pop("ia3_l"), config)
        elif "trainable_tokens_delta" in parts:
            self._replaced(module.removesuffix(".token_adapter"), parts.pop("trainable_tokens_delta"), config, scale)
        elif "lora_embedding_A" in parts:
            self._added(module, products.embedding(module, parts, config, scale), True, magnitude)
        elif "lora_A" in parts:
            bias = parts.pop("lora_B.bias", None)
            rank = parts["lora_A"].shape[0] if parts["lora_A"].shape else 0
            flip = self._flip(module, config, _sides(parts.get("lora_B"), parts["lora_A"]))
            self._added(module, products.lora(module, parts, config, scale, flip), flip, magnitude)
            if bias:
                name = self.names.of(module, "bias")
                self.values[name] = ops.add(self._now(name), ops.affine(bias, config.scale_of(module, rank) * scale))
        elif "oft_R" in parts or "hra_u" in parts:
            self._turned(module, parts, config)
        elif "hira_A" in parts:
            factor = ops.affine(products.hira(parts, scale))
            self._set(
                name := self.names.of(module, "weight"), ops.add(self._now(name), times(ops.affine(self._now(name)), factor))
            )
        elif "miss_block" in parts:
            shape = self.names.tensors[self.names.of(module, "weight")].shape
            self._added(module, products.miss(parts, shape, config, scale), False, None)
        elif any(part.startswith("hada_") for part in parts):
            self._added(module, products.loha(module, parts, config, scale), False, None)
        elif any(part.startswith("lokr_") for part in parts):
            self._added(module, products.lokr(module, parts, config, scale), False, None)
        elif any(part.startswith("vera_") for part in parts):
            shape = self.names.tensors[self.names.of(module, "weight")].shape
            if len(shape) != 2:
                raise ValueError(f"VeRA on a tensor {list(shape)}, which is no matrix")
            rows = prod(parts["vera_lambda_b"].shape) if "vera_lambda_b" in parts else 0
            flip = self._flip(module, config, (rows, prod(shape) // rows) if rows else ())
            self._added(module, products.vera(parts, adapter.shared, (shape[0], shape[1]), scale, flip), flip, None)
        if parts:
            raise ValueError(f"{next(iter(parts))} has no counterpart")

    def _flip(self, module: str, config: AdapterConfig, shape: tuple[int, ...]) -> bool:
        """Whether the base keeps the matrix of ``shape`` (out, in) the other way round."""
        told = self.names.is_transposed(module, shape)
        return config.fan_in_fan_out if told is None else told

    def _now(self, name: str) -> Node:
        return self.values.get(name) or self._original(name)

    def _original(self, name: str) -> Node:
        return _node(self.replaced.get(name) or self.names.tensors[name])

    def _added(self, module: str, delta: Node, flip: bool, magnitude: Node | None) -> None:
        name = self.names.of(module, "weight")
        before, original, untouched = self._now(name), self._original(name), name not in self.values
        shape = original.shape
        if len(shape) > 2:
            before, original = (ops.reshape(node, node.dtype, (shape[0], prod(shape[1:]))) for node in (before, original))
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

    def _turned(self, module: str, parts: products.Parts, config: AdapterConfig) -> None:
        name = self.names.of(module, "weight")
        shape = self.names.tensors[name].shape
        if len(shape) < 2:
            raise ValueError(f"{config.kind} on {name} {list(shape)}, which is no matrix")
        now = ops.reshape(self._now(name), self._now(name).dtype, (shape[0], prod(shape[1:])))
        turn = oft(now, parts.pop("oft_R"), config) if "oft_R" in parts else hra(now, parts.pop("hra_u"), config)
        self._set(name, ops.reshape(turn, "F32", shape))

    def _replaced(self, module: str, rows: Node, config: AdapterConfig, scale: float) -> None:
        places = config.tokens_of(module)
        if not places:
            raise ValueError(f"{CONFIG} does not say which rows it replaces")
        if scale != 1:
            raise ValueError("trained tokens have no strength that could be scaled")
        name = self.names.of(module, "weight")
        self._set(name, with_rows(ops.affine(self._now(name)), ops.affine(rows), places))

    def _multiplied(self, module: str, by: Node, config: AdapterConfig) -> None:
        name = self.names.of(module, "weight")
        now = ops.affine(self._now(name))
        if len(now.shape) < 2:
            raise ValueError(f"IA3 on {name} {list(now.shape)}, which is no matrix, cannot be merged")
        convolution = len(now.shape) > 2  # both ways have one shape there
        feed_forward = config.feeds_forward(module) if convolution else len(by.shape) > 1 and by.shape[0] == 1
        vector = ops.affine(ops.reshape(by, by.dtype, (prod(by.shape),)))
        count = max(prod(by.shape), 1)
        sides = (count, prod(now.shape) // count)
        flip = not convolution and self._flip(module, config, sides[::-1] if feed_forward else sides)
        self._set(name, scaled(now, vector, int(feed_forward != flip)))
        bias = self.names.find(module, "bias")
        if bias and not feed_forward:
            self._set(bias, scaled(ops.affine(self._now(bias)), vector, 0))

    def _set(self, name: str, value: Node) -> None:
        for each in self.names.tied(name):
            self.values[each] = value


def _sides(left: Node | None, right: Node) -> tuple[int, ...]:
    """The sides of a product of two matrices; none where it is of other tensors."""
    return (left.shape[0], right.shape[1]) if left is not None and len(left.shape) == len(right.shape) == 2 else ()


def _tensor(parts: Mapping[str, Tensor], part: str) -> Tensor:
    if part not in parts:
        raise ValueError(f"its {part} is missing")
    return parts[part]


def _node(tensor: Tensor) -> Node:
    if tensor.value is None:
        raise ValueError(f"{tensor.name} is a {tensor.unsupported}")
    return ops.typed(tensor.value, tensor.dtype, tensor.shape)
