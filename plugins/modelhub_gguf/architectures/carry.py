"""Carries a checkpoint's tensors over to GGUF's names, or back, as a row of the table says. Builds expressions; reads no weight.

Which tensors are always F32 is llama.cpp's rule (``conversion/base.py``, ``prepare_tensors``): vectors, norms, whatever is no
``.weight``, routers, positions and convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

from modelhub import InvalidFile, Tensor, UnsupportedFile, ops

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.names import SUFFIXES, Found, Index, fill
from modelhub_gguf.architectures.records import Architecture, Rule, Transform
from modelhub_gguf.architectures.transforms import as_dtype, node_of, with_node

PLAIN = ("F32", "F16", "BF16")
"""Dtypes that stay as they are; what GGUF's readers do not take (F64, F8, integers) becomes F32."""
FULL = (
    "position_embd.weight", "token_types.weight", "blk.*.ffn_gate_inp.weight", "blk.*.ffn_gate_inp_shexp.weight",
    "blk.*.ssm_conv1d*.weight", "blk.*.shortconv.conv.weight", "blk.*.time_mix_first.weight", "blk.*.time_mix_w[12].weight",
    "blk.*.time_mix_decay_w[12].weight", "blk.*.time_mix_lerp_fused.weight", "posnet.*.norm1.weight",
    "blk.*.altup_correct_coef.weight", "blk.*.altup_predict_coef.weight", "blk.*.indexer.proj.weight",
)  # fmt: skip
"""Matrices that are F32 whatever the rest is."""
IGNORED = (r".*\.attention\.masked_bias", r".*\.attention\.bias", r".*\.rotary_emb\.inv_freq")
"""Buffers that older checkpoints hold, and nothing reads."""
MAX_EXPERTS = 1 << 16


@dataclass(slots=True)
class _Group:
    """Tensors that wait for the others of their kind: ``wanted`` of them make something new."""

    wanted: int
    have: dict[int, Tensor] = field(default_factory=dict)

    def add(self, place: int, tensor: Tensor) -> None:
        if place in self.have:
            raise InvalidFile(f"{tensor.name} and {self.have[place].name} are the same part of one tensor")
        self.have[place] = tensor

    @property
    def complete(self) -> bool:
        return len(self.have) == self.wanted

    @property
    def parts(self) -> list[Tensor]:
        return [self.have[place] for place in sorted(self.have)]


class Carrier:
    """One checkpoint's way through one row. ``back``: from GGUF's names to Hugging Face's."""

    def __init__(self, row: Architecture, config: Config, *, back: bool = False) -> None:
        self.row, self.config, self.back = row, config, back
        self._rules: dict[str, Rule] = {}
        if back:
            self._names: dict[str, str] = {}
            wholes = set(row.names.values())
            for hf, gguf in row.names.items():
                if not any(gguf.removesuffix(suffix) in wholes for suffix in SUFFIXES if gguf.endswith(suffix)):  # an older name
                    self._names.setdefault(gguf, hf)
            for rule in row.rules:
                if rule.returns:
                    self._rules.update(dict.fromkeys(rule.gguf, rule))
        else:
            self._names = dict(row.names)
            for rule in row.rules:
                self._rules.update(dict.fromkeys(rule.hf, rule))
        self._index = Index((*self._rules, *self._names))
        self._ignored = re.compile("|".join(f"(?:{pattern})" for pattern in (*IGNORED, *row.ignored)), re.DOTALL)
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._stacks: dict[str, _Group] = {}
        self._from: dict[str, str] = {}

    def carry(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The tensors under their new names. `UnsupportedFile` names one that the row has no place for; `InvalidFile` one that is
        there twice, or of which a part is missing."""
        found = [result for tensor in tensors for result in self._one(tensor)]
        for name, group in (*self._stacks.items(), *((key[0], group) for key, group in self._groups.items())):
            if not group.complete:
                raise InvalidFile(f"{name} is made of {group.wanted} tensors, {len(group.have)} of them are there")
        return found

    def _one(self, tensor: Tensor) -> Iterator[Tensor]:
        name = tensor.name
        if not self.back:
            for prefix in self.row.prefixes:
                name = name.removeprefix(prefix)
            if self._ignored.fullmatch(name):
                return
        found = self._index.find(name)
        if found is None and not self.back:
            found = self._index.find(f"model.{name}")  # a model that was saved without its head
        if found is None:
            raise UnsupportedFile(self._stranger(tensor))
        rule = self._rules.get(found.pattern)
        try:
            if rule:
                yield from self._regrouped(tensor, found, rule)
            elif self.back:
                yield from self._restored(tensor, found)
            else:
                yield from self._mapped(tensor, found, self._names[found.pattern])
        except ValueError as error:
            raise InvalidFile(f"tensor {tensor.name} {list(tensor.shape)}: {error}") from error

    def _stranger(self, tensor: Tensor) -> str:
        there = ", ".join(sorted({pattern.split(".")[-1] for pattern in (*self._rules, *self._names)})[:12])
        return (
            f"tensor {tensor.name} {list(tensor.shape)} has no place in {self.row.name}, whose tensors are {there}, ...: "
            "is it of another architecture, or of a newer kind of this one?"
        )

    def _mapped(self, tensor: Tensor, found: Found, pattern: str) -> Iterator[Tensor]:
        """One to one, or an expert of a stack."""
        name = fill(pattern, found.numbers, found.suffix)
        if "{e}" in found.pattern:
            group = self._stacks.setdefault(name, _Group(self._parts(pattern)))
            group.add(found.numbers["e"], tensor)
            if not group.complete:
                return
            if max(group.have) != group.wanted - 1:
                raise InvalidFile(f"{name} has a part number {max(group.have)}: config.json says that there are {group.wanted}")
            parts = group.parts
            same = len({part.dtype for part in parts}) == 1
            stacked = ops.stack([node_of(part if same else as_dtype(part, "F32")) for part in parts])
            tensor = with_node(tensor, stacked)
        yield self._finished(tensor, name, pattern, found)

    def _parts(self, pattern: str) -> int:
        """How many tensors are stacked under a name."""
        count = next((count for glob, count in self.row.stacked.items() if fnmatchcase(pattern, glob)), None)
        parts = count(self.config) if count else self.config.experts
        if not 0 < parts <= MAX_EXPERTS:
            raise InvalidFile(f"{pattern} is a stack of tensors, and config.json says that there are {parts}")
        return parts

    def _finished(self, tensor: Tensor, name: str, pattern: str, found: Found) -> Tensor:
        """Transformed, in a dtype that it may have, under its name."""
        tensor = self._claim(tensor, name)
        if transform := self._transform(pattern, name):
            tensor = transform.forward(tensor, self.config)
        return as_dtype(tensor, stored_dtype(tensor, self.row))

    def _claim(self, tensor: Tensor, name: str) -> Tensor:
        if name in self._from:
            raise InvalidFile(f"both {self._from[name]} and {tensor.name} are {name}")
        self._from[name] = tensor.name
        return tensor._replace(name=name)

    def _transform(self, pattern: str, name: str) -> Transform | None:
        """``pattern`` is GGUF's, with or without a suffix; ``name`` says which suffix it is."""
        ending = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        for glob, transform in self.row.transforms.items():
            if fnmatchcase(pattern, glob) or fnmatchcase(pattern + ending, glob):
                return transform
        return None

    def _regrouped(self, tensor: Tensor, found: Found, rule: Rule) -> Iterator[Tensor]:
        sources, targets = (rule.gguf, rule.hf) if self.back else (rule.hf, rule.gguf)
        key = fill(targets[0], found.numbers, found.suffix), *targets
        group = self._groups.setdefault(key, _Group(len(sources)))
        group.add(sources.index(found.pattern), tensor)
        if not group.complete:
            return
        parts = group.parts
        if self.back:
            parts = [self._undone(part, source, found) for part, source in zip(parts, sources, strict=True)]
        regroup = rule.regroup.backward if self.back else rule.regroup.forward
        for result, pattern in zip(regroup(parts, self.config), targets, strict=True):
            name = fill(pattern, found.numbers, found.suffix)
            yield self._claim(result, name) if self.back else self._finished(result, name, pattern, found)

    def _undone(self, tensor: Tensor, pattern: str, found: Found) -> Tensor:
        transform = self._transform(pattern, fill(pattern, found.numbers, found.suffix))
        return transform.backward(tensor, self.config) if transform else tensor

    def _restored(self, tensor: Tensor, found: Found) -> Iterator[Tensor]:
        pattern = self._names[found.pattern]
        tensor = self._undone(tensor, found.pattern, found)
        if "{e}" not in pattern:
            yield self._claim(tensor, fill(pattern, found.numbers, found.suffix))
            return
        whole, experts = node_of(tensor), tensor.shape[0] if tensor.shape else 0
        if not 0 < experts <= MAX_EXPERTS:
            raise ValueError(f"{experts} experts")
        for number in range(experts):
            one = ops.reshape(ops.slice_(whole, number, number + 1), tensor.dtype, tensor.shape[1:])
            yield self._claim(with_node(tensor, one), fill(pattern, {**found.numbers, "e": number}, found.suffix))


def stored_dtype(tensor: Tensor, row: Architecture) -> str:
    """What a tensor of GGUF's name is stored as where no recipe says otherwise."""
    full = len(tensor.shape) <= 1 or tensor.name.endswith("_norm.weight") or not tensor.name.endswith(".weight")
    if full or any(fnmatchcase(tensor.name, glob) for glob in (*FULL, *row.full)):
        return "F32"
    return tensor.dtype if tensor.dtype in PLAIN else "F32"


def parameters(tensors: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """(all, shared, of one expert, experts): how llama.cpp counts a model's parameters for its label
    (``gguf_writer.py``, ``get_total_parameter_count``)."""
    total = shared = expert = experts = stacks = 0
    for tensor in tensors:
        size = prod(tensor.shape)
        total += size
        if "_exps." in tensor.name and len(tensor.shape) >= 3:
            count = tensor.shape[-2 if ".bias" in tensor.name else -3]
            expert += size // count if count else 0
            experts += count
            stacks += 1
        else:
            shared += size
    return total, shared, expert, experts // stacks if stacks else 0


def plain_dtype(tensors: Sequence[Tensor]) -> str:
    """The dtype that a model which is not quantized is called after: that of its first 16-bit matrix, else F32."""
    return next((tensor.dtype for tensor in tensors if len(tensor.shape) > 1 and tensor.dtype in ("F16", "BF16")), "F32")
