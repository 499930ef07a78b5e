"""Holds a model that was made of another against it: both run on the same inputs, and the outputs' differences are measured.

The field's tools warn, if anything; here the figures are in the report, and past the user's tolerance the output is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelhub import ModelhubError, OutputsDiffer, UsageError, measure

from modelhub_onnx import given, made_up, running

if TYPE_CHECKING:
    from modelhub_onnx.running import Feed, Session

MADE_UP = 4
MOST = 16
"""Sets of inputs that two models are compared on: so many made up, or at most so many of the user's."""

DOUBTFUL = 0.9
"""A cosine below which the outputs of two models are called different."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the source computes: its inputs, and for each of its outputs the values, set by set. ``whose``: where the inputs are
    from, in words."""

    feeds: Sequence[Feed]
    names: Sequence[str]
    values: Sequence[Sequence[Any]]
    whose: str


def reference(path: str, options: Mapping[str, str]) -> Reference:
    """Run the source. UsageError where the user's inputs do not fit, or none are given and none can be made up that run;
    ModelhubError where onnxruntime does not load it."""
    try:
        loaded = running.session(path)
    except Exception as error:
        what = running.not_here(path, error)
        raise ModelhubError(
            what or f"onnxruntime does not load the source: {running.words(error)}",
            "what was made of it could not be compared with it",
        ) from error
    feeds, whose = inputs(loaded, options)
    try:
        values = running.run(loaded, feeds)
    except Exception as error:
        raise UsageError(f"the source does not run on {whose}: {running.words(error)}") from error
    if not any(_tells(output) for outputs in values for output in outputs):
        raise UsageError(f"the source gives no numbers on {whose}: nothing could be compared")
    return Reference(feeds, [one.name for one in loaded.get_outputs()], values, whose)


def inputs(loaded: Session, options: Mapping[str, str]) -> tuple[Sequence[Feed], str]:
    """The inputs to run on, and where they are from."""
    if options.get("calibration"):
        feeds = list(islice(given.read(options["calibration"], loaded), MOST))
        return feeds, f"{len(feeds)} set{'s' if len(feeds) > 1 else ''} of inputs from --calibration"
    try:
        feeds = made_up.suitable(loaded, MADE_UP)
        return feeds, f"{MADE_UP} sets of made-up inputs, {running.described(feeds[0])}"
    except ValueError as error:
        raise UsageError(
            f"inputs that are made up do not suit this model: {error}", "--calibration PATH (.npz) gives it inputs of its own"
        ) from error


def against(source: Reference, path: str, options: Mapping[str, str]) -> list[dict[str, Any]]:
    """The figures for each output of the model at ``path``. `OutputsDiffer` where it does not run, computes NaN where its source
    does not, or is further from it than ``atol`` and ``rtol`` allow."""
    try:
        loaded = running.session(path)
        values = running.run(loaded, source.feeds)
    except Exception as error:
        raise OutputsDiffer(f"what was made does not run: {running.words(error)}") from error
    return differences(source.names, source.values, [one.name for one in loaded.get_outputs()], values, options)


def differences(
    names: Sequence[str],
    before: Sequence[Sequence[Any]],
    names_after: Sequence[str],
    after: Sequence[Sequence[Any]],
    options: Mapping[str, str],
) -> list[dict[str, Any]]:
    """For each output how far ``after`` is from ``before``, over all sets of inputs; both as lists of outputs, set by set."""
    if len(names) != len(names_after):
        raise OutputsDiffer(f"what was made has the outputs {', '.join(names_after)}, its source {', '.join(names)}")
    rows = []
    for number, name in enumerate(names):
        pairs = [(_numbers(one[number]), _numbers(other[number])) for one, other in zip(before, after, strict=True)]
        if all(item is not None for pair in pairs for item in pair):
            rows.append(_row(name, pairs, options))
    if not rows:
        raise OutputsDiffer("the model has no outputs of numbers that could be compared")
    return rows


def _numbers(value: Any) -> Any:
    """An output as one array: of a list its elements one behind the other, of a map (what classifiers of scikit-learn give) its
    values; None where it is no numbers."""
    import numpy as np

    if isinstance(value, dict):
        value = np.asarray(list(value.values()))
    if isinstance(value, list):
        parts = [_numbers(item) for item in value]
        if not parts or any(part is None for part in parts):
            return None
        return parts[0] if len(parts) == 1 else np.concatenate([part.reshape(-1) for part in parts])
    return value if getattr(value, "dtype", np.dtype("O")).kind in "biuf" else None


def _tells(output: Any) -> bool:
    """Whether there is a number in it that is neither NaN nor infinite."""
    import numpy as np

    found = _numbers(output)
    return found is not None and bool(np.isfinite(found).any())


def _row(name: str, pairs: Sequence[tuple[Any, Any]], options: Mapping[str, str]) -> dict[str, Any]:
    import numpy as np

    for one, other in pairs:
        if one.shape != other.shape:
            raise OutputsDiffer(f"output {name!r} has the shape {list(other.shape)}, its source's {list(one.shape)}")
    before = np.concatenate([one.reshape(-1).astype(np.float64) for one, _ in pairs])
    after = np.concatenate([other.reshape(-1).astype(np.float64) for _, other in pairs])
    broken = int(np.count_nonzero(np.isfinite(before) & ~np.isfinite(after)))
    if broken:
        raise OutputsDiffer(f"output {name!r} has {broken} values that are infinite or NaN, where its source has numbers")
    row = {"name": name, "dtype": str(pairs[0][1].dtype), "values": int(before.size), **measure(before, after)}
    if "atol" in options or "rtol" in options:
        _tolerate(name, before, after, float(options.get("atol", 0)), float(options.get("rtol", 0)))
    return row


def _tolerate(name: str, before: Any, after: Any, atol: float, rtol: float) -> None:
    import numpy as np

    with np.errstate(invalid="ignore"):
        excess = np.abs(after - before) - (atol + rtol * np.abs(before))
    worst = int(np.nanargmax(excess)) if excess.size and not np.isnan(excess).all() else -1
    if worst >= 0 and excess[worst] > 0:
        count = int(np.count_nonzero(excess > 0))
        raise OutputsDiffer(
            f"output {name!r}: {count:,} of {before.size:,} values differ by more than {atol:g} + {rtol:g} x size, the worst is "
            f"{after[worst]:.6g} for {before[worst]:.6g}",
            "nothing was written",
        )


def doubts(rows: Sequence[Mapping[str, Any]], options: Mapping[str, str]) -> list[str]:
    """A word for each output that has little to do with its source's; none where the user said what is near enough."""
    if "atol" in options or "rtol" in options:
        return []
    return [
        f"output {row['name']!r} has little to do with its source's (cosine {row['cosine']:.3f}): --atol and --rtol refuse such"
        for row in rows
        if row.get("cosine") is not None and row["cosine"] < DOUBTFUL
    ]


def tolerances(options: Mapping[str, str]) -> None:
    """UsageError where what the user allows is no number; before any work is done."""
    for name in ("atol", "rtol"):
        if name in options and not math.isfinite(float(options[name])):
            raise UsageError(f"--{name} {options[name]} is no tolerance")


def checked(source: str, options: Mapping[str, str], make: Callable[[Reference], str]) -> tuple[list[dict[str, Any]], str]:
    """Run the source, have the new model made, run that, and give the figures and where the inputs were from. ``make`` gets the
    reference and returns the new model's path."""
    tolerances(options)
    expected = reference(source, options)
    path = make(expected)
    return against(expected, path, options), expected.whose
