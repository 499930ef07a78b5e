"""`auto`: each tensor's type is chosen by the error that it would make, so that a file of the wanted size loses least.

What is made least is the *total weighted squared error*: over all tensors, the sum of w * (original - decoded)^2 over their
elements, where w is the importance of the element's column (the mean square of what the column is multiplied by: the sum is then
the expected squared error of the tensor's outputs), and 1 in tensors that the importance matrix does not know, and everywhere
without one. It is measured on a sample of each tensor's rows, and multiplied up to all of them. Fixed mixtures that fit the
target are held against the choice, and one that does better by these measurements is what is improved on: none of them beats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

from modelhub import Assignment, Choice, Probe, RecipeOptions, Table, Tensor

from modelhub_gguf.recipes.allocate import Option, allocate, improve, total
from modelhub_gguf.recipes.assign import native, notes, weights_for
from modelhub_gguf.recipes.fallback import divides, fit
from modelhub_gguf.recipes.file_types import MIXTURES, NUMBER_OF_TYPE, UNNAMED
from modelhub_gguf.recipes.imatrix import ImportanceMatrix, read_imatrix
from modelhub_gguf.recipes.mixtures import Chooser
from modelhub_gguf.recipes.model import Model, can_change, in_order, model_of
from modelhub_gguf.recipes.overrides import compiled
from modelhub_gguf.recipes.sizes import bits_per_weight, elements, header_bytes, padded, tensor_bytes
from modelhub_gguf.types import BY_NAME

WIDE = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""What is tried on rows that 256 divides."""
NARROW = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What is tried on rows that only 32 divides."""
RIVALS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_xs", "iq4_nl", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0")
"""Fixed mixtures that it is held against."""


@dataclass(frozen=True, slots=True)
class _Task:
    """``free``: the tensors that a type is chosen for, in order; ``choices``: what the user asked for others. ``budget``: bytes
    for the free ones; ``fixed``: what all else takes. ``whole_file``: a file's size is aimed at, so that padding counts."""

    table: Table
    model: Model
    matrix: ImportanceMatrix | None
    free: Sequence[Tensor]
    choices: Mapping[str, Choice]
    budget: int
    fixed: int
    whole_file: bool


def measure_auto(table: Table, options: RecipeOptions, probe: Probe) -> Assignment:
    """Types by measured error. ValueError without a target, with two, or with one that cannot be reached."""
    if (options.target_bits > 0) == (options.target_size > 0):
        raise ValueError("auto aims at a size: give one of --target-bpw BITS and --target-size SIZE")
    matrix = read_imatrix(options.importance) if options.importance else None
    overrides = compiled(options.overrides)
    model = model_of(table, weighed=matrix is not None)
    asked: dict[str, Choice] = {}
    free: list[Tensor] = []
    for tensor in in_order(table.logical):
        if can_change(tensor, model.architecture):
            wanted = overrides.type_of(tensor.name)
            if wanted:
                dtype, why = fit(wanted, tensor.shape[-1])
                asked[tensor.name] = Choice(dtype, weights_for(tensor, dtype, matrix, "auto"), why)
            else:
                free.append(tensor)
    task = _task(table, options, model, matrix, free, asked)
    least = sum(min(_cost(task, tensor, dtype) for dtype in candidates(tensor)) for tensor in free)
    if least > task.budget:
        raise ValueError(_out_of_reach(task, least))
    items = [_options(task, tensor, probe) for tensor in free]
    taken = allocate(items, task.budget)
    if taken is None:
        raise ValueError(_out_of_reach(task, sum(min(option.cost for option in each) for each in items)))
    rivals = _rivals(task, items)
    for rival in rivals.values():
        if total(items, rival)[1] < total(items, taken)[1]:
            taken = improve(items, rival, task.budget)
    choices = dict(asked)
    for tensor, each, place in zip(free, items, taken, strict=True):
        dtype = each[place].name
        choices[tensor.name] = Choice(dtype, weights_for(tensor, dtype, matrix, "auto"))
    found = native(NUMBER_OF_TYPE.get(_most_weights(table, choices), UNNAMED), matrix)
    said = _said(task, items, taken, rivals, choices)
    return Assignment(choices, found, [*said, *notes(table, choices, matrix, overrides)])


def candidates(tensor: Tensor) -> list[str]:
    """The types that a tensor may get, its own among them where a file can hold it."""
    columns = tensor.shape[-1]
    found = list(WIDE if divides("Q4_K", columns) else NARROW if divides("Q4_0", columns) else ())
    own = tensor.dtype if tensor.dtype in BY_NAME else ""
    if own in ("", "F32", "F64"):
        found.append("F16")
    if own and own not in found:
        found.append(own)
    return found


def _task(
    table: Table,
    options: RecipeOptions,
    model: Model,
    matrix: ImportanceMatrix | None,
    free: Sequence[Tensor],
    asked: Mapping[str, Choice],
) -> _Task:
    whole = _Task(table, model, matrix, free, asked, 0, 0, options.target_size > 0)
    names = {tensor.name for tensor in free}
    fixed = header_bytes(table, {**table.metadata.native, **native(0, matrix)}) if whole.whole_file else 0
    for tensor in table.logical:
        if tensor.name not in names and tensor.value is not None:
            fixed += _cost(whole, tensor, asked[tensor.name].dtype if tensor.name in asked else tensor.dtype)
    aim = options.target_size or int(options.target_bits * elements(table) / 8)
    return _Task(table, model, matrix, free, asked, aim - fixed, fixed, whole.whole_file)


def _cost(task: _Task, tensor: Tensor, dtype: str) -> int:
    nbytes = tensor_bytes(tensor, dtype)
    return padded(nbytes, task.table.metadata.native) if task.whole_file else nbytes


def _options(task: _Task, tensor: Tensor, probe: Probe) -> list[Option]:
    """Each candidate's cost and its error, measured on a sample and multiplied up; those that overflow are no options."""
    weights = task.matrix.weights(tensor) if task.matrix else None
    found = []
    for dtype in candidates(tensor):
        if dtype == tensor.dtype:
            loss = 0.0
        else:
            sums = probe(tensor, dtype, weights)
            loss = sums.error_squares / sums.count * prod(tensor.shape) if sums.count else 0.0
            if sums.overflow or not isfinite(loss):
                continue
        found.append(Option(dtype, _cost(task, tensor, dtype), loss))
    if not found:
        raise ValueError(f"tensor {tensor.name} fits none of {', '.join(candidates(tensor))}: give it one with --tensor-type")
    return found


def _rivals(task: _Task, items: Sequence[Sequence[Option]]) -> dict[str, list[int]]:
    """The fixed mixtures that fit the target and whose every type was measured."""
    found = {}
    for name in RIVALS:
        chooser = Chooser(MIXTURES[name], task.model)
        types = [chooser.choose(tensor)[0] for tensor in task.free]
        places = [
            next((place for place, option in enumerate(options) if option.name == dtype), -1)
            for dtype, options in zip(types, items, strict=True)
        ]
        if -1 not in places and total(items, places)[0] <= task.budget:
            found[name] = places
    return found


# --- words --------------------------------------------------------------------------------------------------------


def _out_of_reach(task: _Task, least: int) -> str:
    smallest = least + task.fixed
    what = f"{smallest} bytes" if task.whole_file else f"{smallest * 8 / max(1, elements(task.table)):.3f} bits per weight"
    return f"the target cannot be reached: with the fewest bits for every tensor it takes {what}"


def _most_weights(table: Table, choices: Mapping[str, Choice]) -> str:
    """The type that most weights are of."""
    count: Counter[str] = Counter()
    for tensor in table.logical:
        choice = choices.get(tensor.name)
        count[choice.dtype if choice else tensor.dtype] += prod(tensor.shape)
    return max(count, key=lambda dtype: (count[dtype], dtype), default="")


def _said(
    task: _Task,
    items: Sequence[Sequence[Option]],
    taken: Sequence[int],
    rivals: Mapping[str, Sequence[int]],
    choices: Mapping[str, Choice],
) -> list[str]:
    """What was chosen, and how it compares."""
    cost, loss = total(items, taken)
    count = Counter(options[place].name for options, place in zip(items, taken, strict=True))
    types = ", ".join(f"{n} {dtype}" for dtype, n in sorted(count.items(), key=lambda pair: _bits(pair[0])))
    bits = bits_per_weight(task.table, choices)
    found = [f"auto: {bits:.3f} bits per weight, {task.budget - cost} bytes of the target left; tensors: {types}"]
    weighed = "weighted by importance" if task.matrix else "every weight alike: no importance matrix was given"
    found.append(f"auto: total squared error {loss:.6g}, measured on samples ({weighed})")
    if rivals:
        name, rival = min(rivals.items(), key=lambda pair: total(items, pair[1])[1])
        spent, lost = total(items, rival)
        less = f"{100 * (1 - loss / lost):.1f} % less than" if lost else "no more than"
        found.append(f"auto: {less} the best fixed mixture that fits, {name} ({spent + task.fixed} bytes, error {lost:.6g})")
    return found


def _bits(dtype: str) -> float:
    kind = BY_NAME[dtype]
    return kind.nbytes * 8 / kind.block
