"""Random state dicts, written by real torch in both layouts: read, written and read again, equal bit for bit. And random
damage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from modelhub.files import Checkpoint
from modelhub.types import Tensor
from modelhub_pytorch.reader import read

from tests.corpus import pytorch_bad as bad
from tests.plugins.pytorch_files import NAMES, assert_holds, filled, raw, table, write

shapes = st.lists(st.integers(0, 5), max_size=4)
names = st.text(min_size=1, max_size=12).filter(lambda name: "." not in name and "#" not in name)


def runs(count: int) -> settings:
    """So many examples, however busy the machine is."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """A view of ``base``: transposed, sliced, expanded, or as it is."""
    tensor = base
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["permute", "slice", "step", "expand", "select"]))
        if kind == "permute" and tensor.ndim:
            tensor = tensor.permute(draw(st.permutations(range(tensor.ndim))))
        elif kind in ("slice", "step") and tensor.ndim:
            axis = draw(st.integers(0, tensor.ndim - 1))
            index: list[Any] = [slice(None)] * tensor.ndim
            index[axis] = slice(draw(st.integers(0, 2)), None, draw(st.integers(1, 3)) if kind == "step" else 1)
            tensor = tensor[tuple(index)]
        elif kind == "expand":
            tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
        elif kind == "select" and tensor.ndim and tensor.shape[0]:
            tensor = tensor[draw(st.integers(0, tensor.shape[0] - 1))]
    return tensor


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """A state dict, nested, with views and ties."""
    bases = [
        filled(draw(st.sampled_from(list(NAMES))), *draw(shapes), seed=draw(st.integers(0, 1 << 30)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    leaf = st.sampled_from(bases).flatmap(views) | st.sampled_from(bases)
    tree = st.recursive(
        leaf, lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=3), max_leaves=10
    )
    # A prefix that is no wrapper's name ("model"), and nothing that training leaves ("optimizer").
    return {f"w{name}": value for name, value in draw(st.dictionaries(names, tree, max_size=5)).items()}


def flattened(node: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return {prefix: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found.update(flattened(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


@runs(100)
@given(states(), st.booleans())
def test_any_state_dict_survives(state: dict[str, Any], zipped: bool) -> None:
    expected = flattened(state)
    assume(not any(left_by_training(name) for name in expected))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "in.pt"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        got = table(path)
        assert_holds(got, expected)
        out = write(got, Path(directory) / "out.pt")
        loaded = torch.load(out, weights_only=True)
        assert {name: (value.dtype, value.shape, raw(value)) for name, value in loaded.items()} == {
            name: (value.dtype, value.shape, raw(value)) for name, value in expected.items()
        }


def left_by_training(name: str) -> bool:
    """Names that put an entry beside the weights."""
    from modelhub_pytorch.flatten import _NOT_WEIGHTS

    return _NOT_WEIGHTS.search(name) is not None


GOOD = (
    bad.checkpoint(bad.state_dict([("weight", bad.tensor()), ("part", bad.tensor(shape=(2,), offset=2))])),
    bad.legacy(bad.state_dict([("weight", bad.tensor(legacy=True))])),
    bad.deflated(),
)


@runs(300)
@given(
    st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6), st.integers(0, 1 << 20)
)
def test_random_damage_is_an_error_of_the_file_or_a_table_inside_it(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    from modelhub import FileProblem, ops

    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    if cut % 3 == 0:
        del damaged[cut % len(damaged) :]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m.pt"
        path.write_bytes(damaged)
        try:
            records = list(read(Checkpoint(str(path), [str(path)])))
        except FileProblem:
            return
        for record in records:
            if isinstance(record, Tensor) and record.value is not None:
                assert all(
                    extent.offset >= 0 and extent.offset + extent.nbytes <= len(damaged) for extent in ops.extents(record.value)
                )


@runs(300)
@given(st.binary(max_size=300))
def test_random_opcodes_are_bounded(opcodes: bytes) -> None:
    from modelhub import InvalidFile
    from modelhub_pytorch.allow import Report
    from modelhub_pytorch.flatten import leaves, plain_values
    from modelhub_pytorch.pickle_vm import Machine
    from modelhub_pytorch.rebuild import World

    report = Report("m.pt")
    world = World("m.pt", report)
    try:
        root, _ = Machine(opcodes, "m.pt", world.resolve, world.persistent, report).load()
        list(leaves(root))
        plain_values(root)
    except InvalidFile:
        pass
    list(report.findings())
