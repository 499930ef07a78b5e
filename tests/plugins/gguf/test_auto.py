"""`auto`: types by measured error. Errors are measured by libggml here, on weights as uneven as a model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelhub import Assignment, Metadata, Recipe, RecipeOptions, Table, Tensor, plugins
from modelhub.engine.cast import read_floats
from modelhub.engine.errors import ErrorSums
from modelhub.engine.values import Handles
from modelhub_gguf.fields import u32
from modelhub_gguf.recipes.allocate import Option, allocate, total
from modelhub_gguf.recipes.auto import NARROW, RIVALS, WIDE
from modelhub_gguf.recipes.sizes import bits_per_weight, tensor_bytes
from modelhub_gguf.types import BY_NAME
from numpy.typing import NDArray

from tests.plugins.gguf import ggml
from tests.plugins.gguf.importance_files import measured, write_gguf
from tests.plugins.gguf.mixed_models import MODELS, Spec

ROWS = 8
"""Rows of a tensor that are made up, and measured."""


class Model:
    """A table with made-up weights, and the probe that measures what an encoding does to a few rows of them."""

    def __init__(self, name: str, seed: int = 7) -> None:
        self.spec: Spec = MODELS[name]()
        self.table = self.spec.table()
        random = np.random.default_rng(seed)
        self.weights: dict[str, NDArray[np.float32]] = {}
        for tensor in self.table.tensors:
            spread = 0.02 * np.exp(random.normal(0, 0.8))
            rows = min(ROWS, prod(tensor.shape[:-1]))
            values = random.standard_t(5, size=(rows, tensor.shape[-1])) * spread
            self.weights[tensor.name] = values.astype(np.float16).astype(np.float32)
        self.asked: list[tuple[str, str]] = []
        self.known: dict[tuple[str, str, bool], ErrorSums] = {}

    def error(self, name: str, dtype: str, importance: Any = None) -> ErrorSums:
        key = name, dtype, importance is not None
        if key not in self.known:
            self.known[key] = self._error(self.weights[name], dtype, importance)
        return self.known[key]

    @staticmethod
    def _error(values: NDArray[np.float32], dtype: str, importance: Any) -> ErrorSums:
        weights = None
        if importance is not None:
            handles = Handles()
            weights = read_floats(importance, handles)
            handles.close()
        if dtype in ("F16", "F32"):
            back = values.astype(np.float16).astype(np.float32)
        else:
            back = ggml.dequantize(dtype, ggml.quantize(dtype, values, weights)).reshape(values.shape)
        squares = (back.astype(np.float64) - values) ** 2
        sums = ErrorSums()
        sums.count = values.size
        sums.error_squares = float((squares if weights is None else squares * weights).sum())
        return sums

    def probe(self, tensor: Tensor, dtype: str, importance: Any = None) -> ErrorSums:
        self.asked.append((tensor.name, dtype))
        return self.error(tensor.name, dtype, importance)

    def total_error(self, types: Mapping[str, str], weights: Mapping[str, Any]) -> float:
        """The sum that `auto` makes least, over the tensors that are encoded."""
        tensors = {tensor.name: tensor for tensor in self.table.tensors}
        loss = 0.0
        for name, dtype in types.items():
            if dtype != tensors[name].dtype:
                sums = self.error(name, dtype, weights.get(name))
                loss += sums.error_squares / sums.count * prod(tensors[name].shape)
        return loss


def recipe(name: str) -> Recipe:
    (found,) = (one for one in plugins.get().recipes if one.name == name and "gguf" in one.formats)
    return found


def auto(model: Model, **options: Any) -> Assignment:
    found = recipe("auto")
    assert found.measure
    return found.measure(model.table, RecipeOptions(**options), model.probe)


def types_of(assignment: Assignment) -> dict[str, str]:
    return {name: choice.dtype for name, choice in assignment.choices.items()}


def fixed(model: Model, name: str, **options: Any) -> Assignment:
    found = recipe(name)
    assert found.assign
    return found.assign(model.table, RecipeOptions(**options))


@pytest.mark.parametrize("mixture", ["q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m"])
@pytest.mark.parametrize("weighed", [False, True])
def test_it_beats_the_fixed_mixture_of_equal_size(mixture: str, weighed: bool, tmp_path: Path) -> None:
    model = Model("llama of 8 layers")
    options = {"importance": str(write_gguf(tmp_path / "imatrix.gguf", measured(model.spec.shapes)))} if weighed else {}
    rival = fixed(model, mixture, **options)
    bits = bits_per_weight(model.table, rival.choices)
    found = auto(model, target_bits=bits, **options)
    assert bits - 0.02 < bits_per_weight(model.table, found.choices) <= bits
    # Weights as they were measured, whether an encoder takes notice of them or not: what is compared is the same sum.
    weights = {name: choice.importance for name, choice in fixed(model, "q4_0", **options).choices.items()}
    ours, theirs = model.total_error(types_of(found), weights), model.total_error(types_of(rival), weights)
    assert ours < 0.8 * theirs
    assert any(f"auto: total squared error {ours:.6g}" in note for note in found.notes)


def test_it_says_what_it_did() -> None:
    model = Model("llama of 8 layers")
    found = auto(model, target_bits=4.6)
    first, second, third = found.notes
    assert first.startswith(("auto: 4.6", "auto: 4.59"))
    assert "bits per weight" in first
    count = {dtype: list(types_of(found).values()).count(dtype) for dtype in {*types_of(found).values()}}
    assert all(f"{n} {dtype}" in first for dtype, n in count.items())
    assert "every weight alike: no importance matrix was given" in second
    assert "less than the best fixed mixture that fits, q4_k_s" in third
    assert found.native["general.quantization_version"] == u32(2)
    assert auto(model, target_bits=3).native["general.file_type"] == u32(10)
    assert auto(model, target_bits=6.5).native["general.file_type"] == u32(18)
    assert auto(model, target_bits=16).native["general.file_type"] == u32(1)
    assert types_of(found) == types_of(auto(model, target_bits=4.6))


def test_more_bits_lose_less() -> None:
    model = Model("qwen2 of 24 layers, tied")
    losses = [model.total_error(types_of(auto(model, target_bits=bits)), {}) for bits in (2.7, 3, 3.5, 4, 5, 6, 7, 8, 12)]
    assert losses == sorted(losses, reverse=True)
    everything = auto(model, target_bits=20)
    assert {*types_of(everything).values()} == {"F16"}


def test_a_file_of_a_size() -> None:
    model = Model("llama of 8 layers")
    raw = sum(prod(tensor.shape) for tensor in model.table.tensors)
    for size in (raw // 2 + 50_000, raw):
        found = auto(model, target_size=size)
        chosen = types_of(found)
        data = sum(-(-tensor_bytes(t, chosen.get(t.name, t.dtype)) // 32) * 32 for t in model.table.tensors)
        header = 24 + sum(8 + len(t.name) + 4 + 8 * len(t.shape) + 12 for t in model.table.tensors)
        assert size - 20_000 < data + header < size


def test_rows_that_256_does_not_divide() -> None:
    model = Model("rows that 256 does not divide, tied")
    found = types_of(auto(model, target_bits=6))
    assert {*found.values()} <= {*NARROW, "F16"}
    assert len({*found.values()}) > 1
    odd = types_of(auto(Model("rows that 32 does not divide"), target_bits=17))
    assert {*odd.values()} == {"F16"}


def test_overrides_are_kept() -> None:
    model = Model("llama of 8 layers")
    found = auto(model, target_bits=4.5, overrides=((r"^output\.weight", "q8_0"), ("attn_k", "q6_k")))
    types = types_of(found)
    assert types["output.weight"] == "Q8_0"
    assert all(types[f"blk.{layer}.attn_k.weight"] == "Q6_K" for layer in range(8))
    assert bits_per_weight(model.table, found.choices) <= 4.5
    assert not any(name == "output.weight" for name, _ in model.asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --target-bpw BITS and --target-size SIZE"),
        ({"target_bits": 4.0, "target_size": 1000}, "give one of"),
        ({"target_bits": 2.0}, r"with the fewest bits for every tensor it takes 2\.\d+ bits per weight"),
        ({"target_size": 1000}, r"with the fewest bits for every tensor it takes \d{7} bytes"),
        ({"target_bits": 4.0, "overrides": (("ffn", "f16"),)}, r"it takes 1\d\.\d+ bits per weight"),
        ({"target_bits": 4.0, "overrides": (("ffn", "q9"),)}, "'q9' is not the type of a tensor"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    model = Model("llama of 8 layers")
    with pytest.raises(ValueError, match=message):
        auto(model, **options)
    assert not model.asked  # nothing is measured for nothing


def test_types_that_overflow_are_not_taken() -> None:
    """A 16-bit float has no 1e5."""
    model = Model("llama of 8 layers")
    tensors = tuple(t._replace(dtype="F32") if t.name == "blk.0.attn_q.weight" else t for t in model.table.tensors)
    model.table = Table(tensors, Metadata(native=model.table.metadata.native))
    sums = ErrorSums()
    sums.count, sums.overflow = 1, 3
    measure = model.error

    def error(name: str, dtype: str, importance: Any = None) -> ErrorSums:
        return sums if (name, dtype) == ("blk.0.attn_q.weight", "F16") else measure(name, dtype, importance)

    model.error = error  # type: ignore[method-assign]
    assert types_of(auto(model, target_bits=33))["blk.0.attn_q.weight"] == "F32"


def test_the_rivals_have_no_other_types() -> None:
    """Else they could not be held against it."""
    model = Model("llama of 32 layers, no shared heads")
    for name in RIVALS:
        assert {*types_of(fixed(model, name)).values()} <= {*WIDE}, name
    assert all(BY_NAME[dtype].block == 256 or BY_NAME[dtype].block == 32 for dtype in (*WIDE, *NARROW))


# --- the allocation ---


def choices(options: list[list[tuple[int, int]]]) -> list[list[Option]]:
    return [[Option(str(n), cost, float(loss)) for n, (cost, loss) in enumerate(each)] for each in options]


def exhaustive(items: list[list[Option]], budget: int) -> Iterator[float]:
    for taken in product(*(range(len(each)) for each in items)):
        cost, loss = total(items, taken)
        if cost <= budget:
            yield loss


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1000)), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 160),
)
def test_allocations_fit_and_are_close_to_the_best(options: list[list[tuple[int, int]]], budget: int) -> None:
    items = choices(options)
    taken = allocate(items, budget)
    best = min(exhaustive(items, budget), default=None)
    if taken is None:
        assert best is None
        return
    assert best is not None
    cost, loss = total(items, taken)
    assert cost <= budget
    # Within the largest loss of one item: the bound of what is left over. Nearly always it is the best itself.
    assert best <= loss <= best + max(option.loss for each in items for option in each)


def test_allocations_of_many_are_as_good_as_the_bound() -> None:
    """Against the Lagrangian bound, which no allocation can beat."""
    random = np.random.default_rng(1)
    items = []
    for _ in range(120):
        size, scale = int(random.integers(1000, 50_000)), float(np.exp(random.normal(0, 2)))
        items.append([Option(str(bits), size * bits, size * scale * 4.0**-bits) for bits in range(2, 9)])
    budget = sum(each[0].cost for each in items) * 2
    taken = allocate(items, budget)
    assert taken is not None
    _, loss = total(items, taken)
    bound = max(
        sum(min(option.loss + price * option.cost for option in each) for each in items) - price * budget
        for price in np.geomspace(1e-9, 1e3, 2000)
    )
    assert bound <= loss <= 1.005 * bound
