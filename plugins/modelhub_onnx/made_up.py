"""Inputs that suit a model, made up from what it declares: names, types, and the sides that are fixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from modelhub_onnx import running

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelhub_onnx.running import Feed, Session

SIDES = (8, 1, 512, 576, 64, 256, 16000, 2, 3, 224)
"""What is tried for sides that a model leaves open and no name explains: short texts, one of a kind, windows of audio, images."""
IMAGE_SIDES = (64, 224, 320, 48, 512, 256, 8, 1)
"""The same, for models whose inputs have an image's four dimensions."""
NUMBERS = (97, 10, 2)
"""What whole numbers stay below: they may be indices, of a table that is small."""
MAX_ELEMENTS = 1 << 26
PAST, NEW = 4, 8
"""Positions that are in a cache of keys and values already, and those that come with the inputs."""
LISTED = 2
"""Elements of an input that is a list of tensors."""


def suitable(loaded: Session, count: int) -> list[Feed]:
    """Inputs that the model takes, made up: the first guess at its open sides that runs and gives something else than nothing and
    zeros, or the first that runs. ValueError with onnxruntime's first words where none does, or where an input is nothing that
    can be made up."""
    said = ""
    seen: set[str] = set()
    second: list[Feed] = []
    for side in IMAGE_SIDES if any(len(one.shape) == 4 for one in loaded.get_inputs()) else SIDES:
        for most in NUMBERS:
            try:
                feeds: list[Feed] = [dict(invented(loaded, side, most, seed)) for seed in range(count)]
            except _TooLarge as error:
                said = said or str(error)
                continue
            key = str([_guessed(name, item, most) for name, item in feeds[0].items()])
            if key in seen:
                continue
            seen.add(key)
            try:
                outputs = running.run(loaded, feeds[:1])[0]
            except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common type of their own
                said = said or str(error).strip().splitlines()[0][:300]
                continue
            if _tell(outputs):
                return feeds
            second = second or feeds
    if second:
        return second
    raise ValueError(said or "it takes no inputs that can be made up")


def _guessed(name: str, item: Any, most: int) -> tuple[Any, ...]:
    """What is guessed of an input; where two guesses come to the same, one of them is enough."""
    first = item[0] if isinstance(item, list) else item
    return name, first.shape, most if first.dtype.kind in "iu" else 0


class _TooLarge(ValueError):
    """A guess at the open sides that comes to too many elements."""


def _tell(outputs: Sequence[Any]) -> bool:
    """Is there an output by which two models could be told apart: a number that is not zero?"""
    import numpy as np

    arrays = [one for one in outputs if getattr(one, "size", 0)]
    return any(one.dtype.kind not in "biuf" or (np.isfinite(one) & (one != 0)).any() for one in arrays)


def invented(loaded: Session, side: int, most: int, seed: int) -> Iterator[tuple[str, Any]]:
    """A value for each input. Floats are normal, numbers are below ``most``; masks, positions and sides are told by their names,
    as exporters give them."""
    import numpy as np

    random = np.random.default_rng(seed)
    for one in loaded.get_inputs():
        kind = running.kind_of(one.type)
        if kind is None:
            raise ValueError(f"input {one.name!r} is a {one.type}, which cannot be made up")
        shape = _shape(one.shape or ([None] if kind.is_list else []), side)  # of lists onnxruntime tells none
        if np.prod(shape, dtype=np.float64) > MAX_ELEMENTS:
            raise _TooLarge(f"input {one.name!r} of {shape} is too large to make up")
        if "len" in one.name.lower() and kind.dtype.kind in "iu" and len(shape) < 2 and most > 2 and not kind.is_list:
            yield one.name, np.full(shape, side, kind.dtype)  # of what comes beside it: all of it
            continue
        values = [_values(one.name.lower(), kind.dtype, shape, most, random) for _ in range(LISTED if kind.is_list else 1)]
        yield one.name, values if kind.is_list else values[0]


def _shape(sides: Sequence[int | str | None], side: int) -> list[int]:
    first = [1] if len(sides) == 4 and not isinstance(sides[0], int) else []  # of images one is enough
    return first + [_side(item, side) for item in sides[len(first) :]]


def _side(item: int | str | None, side: int) -> int:
    if isinstance(item, int) or (item or "").isdecimal():  # some exporters write numbers as names
        return int(item or 0)
    name = (item or "").lower()
    if "batch" in name:
        return 1
    if "past" in name and ("+" in name or "total" in name):
        return PAST + NEW
    if "total" in name:
        return PAST + NEW
    if "past" in name or "cache" in name:
        return PAST
    if "seq" in name and item is not None:
        return NEW if side == SIDES[0] else side
    return side


def _values(name: str, kind: np.dtype[Any], shape: list[int], most: int, random: np.random.Generator) -> NDArray[Any]:
    import numpy as np

    if "mask" in name and kind.kind in "iub":
        return np.ones(shape, kind)
    if kind.kind == "O":
        return np.full(shape, "text", object)
    if kind.kind in "fV":
        return random.standard_normal(shape).astype(kind)
    if kind.kind == "b":
        return np.ones(shape, kind)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=kind) + (PAST if most > 2 else 0), shape).copy()
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, kind)
    if not shape and most > 2 and name in ("sr", "sample_rate", "sampling_rate"):
        return np.asarray(16000, kind)
    return random.integers(0, most, shape).astype(kind)
