"""Which tensor of a base a module of an adapter stands for: names with or without what wraps a model, ties, new heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modelhub import Table, Tensor

from modelhub_peft.renames import spellings

OUTPUTS = ("lm_head", "embed_out", "output")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "embedding")
"""What models call their output and their token embeddings."""
WRAPPERS = ("model", "base_model", "module", "transformer", "language_model", "text_model", "vision_model")
"""How names begin in models that hold others. Which of them, and in what order, differs between versions of transformers: what is
``language_model.model.layers.0`` in a file is ``model.language_model.layers.0`` in the memory that an adapter was trained in."""

_LAYER = re.compile(r"(?:.*\.)?layers?\.\d+\.", re.DOTALL)
"""How the names of what belongs to one of a model's layers begin: a head that is new is none of them."""


class Names:
    """The tensors of a base, looked up by the names that modules have in the model that an adapter was trained on."""

    def __init__(self, base: Table) -> None:
        self.tensors = base.by_name
        self.architecture = base.metadata.values.get("architecture")
        self._groups: dict[str, list[str]] = {}
        for name, kept in base.ties.items():
            self._groups.setdefault(kept, [kept]).append(name)
        self._kept = {name: kept for kept, group in self._groups.items() for name in group}
        self._ends: dict[str, list[str]] = {}
        for name in self.tensors:
            self._ends.setdefault(".".join(name.split(".")[-2:]), []).append(name)
        self._bare: dict[str, list[str]] = {}
        self._ways: dict[str, bool] | None = None

    def of(self, module: str, leaf: str) -> str:
        """The name of a module's weight or bias. An output that the base does not hold is its embedding. ValueError where there
        is none."""
        found = self.find(module, leaf)
        if found is None and leaf == "weight" and module.rsplit(".", 1)[-1] in OUTPUTS:
            found = self.embedding()
        if found is None:
            raise ValueError(f"the base has no tensor {module}.{leaf}")
        return found

    def find(self, module: str, leaf: str) -> str | None:
        """The tensor of that name; else the one whose name is its end, or ends in it: a model may have been saved inside another
        or without its head. Else the one whose name differs in nothing but `WRAPPERS` at its start. Else the same for the names
        that files have for what is called so in memory."""
        name = f"{module}.{leaf}"
        found = self._find(name)
        return found if found is not None else next((other for each in spellings(name) if (other := self._find(each))), None)

    def _find(self, name: str) -> str | None:
        if name in self.tensors:
            return name
        near = self._ends.get(".".join(name.split(".")[-2:]), [])
        ends = [one for one in near if (name.endswith(f".{one}") and one.count(".") > 0) or one.endswith(f".{name}")]
        if not ends:
            if not self._bare:
                for each in self.tensors:
                    self._bare.setdefault(_bare(each), []).append(each)
            ends = self._bare.get(_bare(name), [])
        return ends[0] if len(ends) == 1 else None

    def is_transposed(self, module: str, shape: tuple[int, ...]) -> bool | None:
        """Whether the base has a module's matrix, which is of ``shape`` (out, in) to the adapter, the other way round, as
        transformers' Conv1D keeps it; None where nothing tells. What the configuration says holds for one of its modules: peft
        goes by the module's kind. A square matrix is as other modules are that are called the same and are not square."""
        found = self.find(module, "weight")
        mine = self.tensors[found].shape if found is not None else ()
        if len(mine) != 2 or len(shape) != 2:
            return None
        if mine[0] != mine[1]:
            return {shape: False, shape[::-1]: True}.get(mine)
        return self._transposed_ones().get(module.rsplit(".", 1)[-1])

    def _transposed_ones(self) -> dict[str, bool]:
        """By the last word of modules' names: whether their matrices have a column for each number of their bias, not a row."""
        if self._ways is None:
            self._ways = {}
            for name, tensor in self.tensors.items():
                bias = self.tensors.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
                if bias is not None and len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1]:
                    self._ways.setdefault(name.split(".")[-2], bias.shape == tensor.shape[1:])
        return self._ways

    def tied(self, name: str) -> list[str]:
        """All names of the bytes that ``name`` has."""
        return self._groups.get(self._kept.get(name, name), [name])

    def embedding(self) -> str | None:
        """The only matrix of token embeddings."""
        found = [
            name
            for name in self.tensors
            if name.endswith(".weight") and name.split(".")[-2:-1] and name.split(".")[-2] in EMBEDDINGS
        ]
        return found[0] if len(found) == 1 else None

    def replacement(self, tensor: Tensor, config: Mapping[str, Any]) -> tuple[str, bool]:
        """The name of a tensor that takes the place of the base's, or that is added to them; and whether it was trained as a
        module of its own (peft also saves embeddings that were only resized, or not even that). ValueError for one without a
        place: it is not the base's, and no module that the adapter says it saves has it."""
        module, _, leaf = tensor.name.rpartition(".")
        saved = config.get("modules_to_save")
        listed = [name for name in saved if isinstance(name, str)] if isinstance(saved, list) else []
        trained = any(f".{name}." in f".{tensor.name}" for name in listed)
        if trained and config.get("ensure_weight_tying") is True and module.rsplit(".", 1)[-1] in (*OUTPUTS, *EMBEDDINGS):
            trained = False  # ties were kept in training
        found = self.find(module, leaf)
        if found is None and not trained and module.rsplit(".", 1)[-1] in OUTPUTS:
            found = self.embedding()
        if found is not None:
            mine = self.tensors[found].shape
            if mine[1:] != tensor.shape[1:] or len(mine) != len(tensor.shape):
                raise ValueError(f"{tensor.name} has the shape {list(tensor.shape)}, in the base {list(mine)}")
            return found, trained
        layer = _LAYER.match(tensor.name)
        if layer and any(name.startswith(layer[0]) for name in self.tensors):
            raise ValueError(f"the base has no tensor {tensor.name}, though it has {layer[0].rstrip('.')}")
        if trained:
            return tensor.name, trained
        raise ValueError(f"{tensor.name} is not in the base, and modules_to_save does not name it")


def _bare(name: str) -> str:
    """A name without the wrappers that it begins with; of a name that is nothing else, the last two words."""
    words = name.split(".")
    start = 0
    while start < len(words) - 2 and words[start] in WRAPPERS:
        start += 1
    return ".".join(words[start:])
