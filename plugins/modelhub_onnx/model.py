"""What is kept of a model: its tensors and where they lie, its operators, and what it says of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelhub import Columns, Metadata, Tensor

from modelhub_onnx.external import Externals


class Use(NamedTuple):
    """A node of an operator that is tracked: its inputs, and its whole numbers among the attributes."""

    operator: str
    inputs: tuple[str, ...]
    numbers: dict[str, int]


@dataclass(slots=True)
class Model:
    """What a model says. ``names`` to ``nbytes``: the initializers that are raw data of the graph itself, column by column;
    ``tensors``: all others; ``operators``: (domain, name) -> nodes; ``opsets``: domain -> version; ``functions``: (domain, name)
    of the model's own operators; ``constants``: how many small ones are not listed; ``small``: those of them that quantizing
    operators name. External places are in ``externals``."""

    externals: Externals
    ir_version: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    model_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    functions: set[tuple[str, str]] = field(default_factory=set)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    small: dict[str, Tensor] = field(default_factory=dict)
    constants: int = 0
    subgraphs: int = 0
    training: int = 0
    has_graph: bool = False
    frozen: Columns | None = None
    described: Metadata | None = None
    """What is said of it, once that was worked out; both are the same objects in each model that is laid out like this one."""

    @property
    def columns(self) -> Columns:
        path = self.externals.model.path
        if self.frozen is not None:
            return self.frozen._replace(file=path)
        return Columns(path, self.names, self.dtypes, self.shapes, self.offsets, self.nbytes)

    def freeze(self) -> None:
        """Nothing is added any more: the columns are the same objects from now on."""
        shapes = tuple(map(tuple, self.shapes))
        columns = (tuple(self.names), tuple(self.dtypes), shapes, tuple(self.offsets), tuple(self.nbytes))
        self.frozen = Columns(self.externals.model.path, *columns)

    def all_tensors(self) -> list[Tensor]:
        return [*self.columns.tensors(), *self.tensors]
