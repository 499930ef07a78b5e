"""What quantization left in a state dict besides weights: fake quantization and observers (``torch.ao.quantization``), and the
numbers that go with converted layers. Which tensors are the model's, and what they stand for.

A layer in quantization-aware training has its weight in floats and, under ``weight_fake_quant``, the grid that the network was
trained to live with. The weight that is meant is the one on that grid: it is what the trained network computes with, and rounding
it anew by another scale would undo the training. Observers and grids are stored tensors, no parameters.

A converted state dict holds quantized tensors (`modelhub_pytorch.values` has their own scales), some of them as a layer's
``_packed_params``.

The names are torch's (``ao/quantization/fake_quantize.py``, ``observer.py``, ``ao/nn/quantized/modules``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from modelhub import Extent, Finding, Node, Tensor, ops

from modelhub_pytorch.fake_quant import EPS, FLOATS

Read = Callable[[Extent], bytes]
_GRID = "weight_fake_quant"
_STATE = frozenset(
    {"fake_quant_enabled", "observer_enabled", "static_enabled", "learning_enabled", "scale", "zero_point", "eps"}
    | {"min_val", "max_val", "min_vals", "max_vals", "histogram"}
)
_PACKED = "._packed_params._packed_params"
_ACTIVATIONS = re.compile(r"^(?P<stem>(?:.*[._])?)scale(?P<number>_\d+)?$")
_KINDS = {"I32": "i", "I64": "q", "F32": "f", "U8": "B"}
MAX_CHANNELS = 1 << 20


class Grid(NamedTuple):
    """Whole numbers ``low``..``high``; ``told``: the observer's range fits them; ``sure``: also whether the lowest is used, which
    has no opposite."""

    low: int
    high: int
    told: bool
    sure: bool = True

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()


class Found(NamedTuple):
    """The table with what was found, a label ("" where weights are plain), what ``show`` says of it, and findings."""

    tensors: Sequence[Tensor]
    precision: str = ""
    shown: Mapping[str, Any] = MappingProxyType({})
    findings: Sequence[Finding] = ()


def settle(tensors: Sequence[Tensor], read: Read) -> Found:
    """``tensors`` of one file, with weights on their own grids and what is no parameter as stored only. ``read`` gives the bytes
    of an extent; it is asked for scales and ranges alone."""
    names = {tensor.name: tensor for tensor in tensors if tensor.view != "logical"}
    owners = _observers(names)
    if owners:
        return _trained(tensors, names, owners, read)
    wholes = {tensor.name for tensor in tensors if tensor.view == "logical"}
    return _converted(tensors, names, wholes) if wholes else Found(tensors)


def _observers(names: Mapping[str, Tensor]) -> set[str]:
    """Prefixes of the modules that observe or quantize in training."""
    found = set()
    for name in names:
        owner, _, last = name.rpartition(".")
        beside = {"fake_quant_enabled": "scale", "min_val": "max_val", "min_vals": "max_vals"}.get(last)
        if beside and f"{owner}.{beside}" in names:
            found.add(owner)
    return found - {""}


def _trained(tensors: Sequence[Tensor], names: Mapping[str, Tensor], owners: set[str], read: Read) -> Found:
    out: list[Tensor] = []
    findings: list[Finding] = []
    labels: dict[str, int] = {}
    assumed: list[str] = []
    folded: list[str] = []
    plain: list[Finding] = []
    grids = {owner: _grid(owner, names, read) for owner in owners if owner.endswith(_GRID)}
    narrow = {grid.bits for grid in grids.values() if grid.told and grid.sure and (grid.high - grid.low) % 2 == 0}
    for tensor in tensors:
        owner, _, last = tensor.name.rpartition(".")
        if last in _STATE and owner in owners and tensor.view == "both":
            out.append(tensor._replace(view="stored"))
            continue
        grid_name = f"{owner}.{_GRID}" if owner else _GRID
        if last != "weight" or grid_name not in owners or tensor.view != "both":
            out.append(tensor)
            continue
        grid = grids[grid_name]
        if not grid.sure and grid.bits in narrow:  # as the model's other layers
            grid = grid._replace(low=grid.low + 1)
        value = _on_grid(tensor, owner, grid, names, read)
        if isinstance(value, str):
            plain.append(Finding("fake-quant", "info", f"is kept as it was trained, in floats: {value}", tensor=tensor.name))
            out.append(tensor)
            continue
        whole, label = value
        out.append(tensor._replace(view="stored"))
        out.append(tensor._replace(value=whole, view="logical"))
        labels[label] = labels.get(label, 0) + prod(tensor.shape)
        if not grid.told:
            assumed.append(tensor.name)
        if len(_inner(whole).inputs) == 5:
            folded.append(tensor.name)
    findings += plain[:1]
    for what, places in (
        ("no observer tells the range of its grid; the 8 bits that are usual are taken", assumed),
        (f"its grid is that of the weight folded with its batch norm, whose eps is taken as {EPS:g}", folded),
    ):
        if places:
            more = f" (and of {len(places) - 1} more)" if len(places) > 1 else ""
            findings.append(Finding("fake-quant", "info", f"{what}{more}", tensor=places[0]))
    if not labels:
        kind = "fake quantization" if any(name.endswith(".fake_quant_enabled") for name in names) else "observers"
        return Found(out, "", {"quantization": {"method": kind, "weights": "as trained"}}, findings)
    label = max(labels, key=lambda item: labels[item])
    return Found(out, f"QAT-{label}", {"quantization": {"method": "quantization-aware training", "weights": label}}, findings)


def _inner(value: Any) -> Node:
    """The fake_quantize node under a cast."""
    return value if value.op == "fake_quantize" else _inner(value.inputs[0])


def _grid(owner: str, names: Mapping[str, Tensor], read: Read) -> Grid:
    """The whole numbers of the grid called ``owner``."""
    parts = ("scale", "zero_point", "activation_post_process.min_val", "activation_post_process.max_val")
    return _range(*(_numbers(names.get(f"{owner}.{part}"), read) for part in parts))


def _on_grid(tensor: Tensor, owner: str, grid: Grid, names: Mapping[str, Tensor], read: Read) -> tuple[Node, str] | str:
    """(the weight on its grid, what people call it), or why it has none."""
    prefix = f"{owner}." if owner else ""
    grid_name = f"{prefix}{_GRID}"
    if tensor.dtype not in FLOATS or tensor.value is None or not tensor.shape:
        return f"a weight of {tensor.dtype} is not rounded in training"

    def numbers(name: str) -> list[float]:
        return _numbers(names.get(f"{grid_name}.{name}"), read)

    if numbers("fake_quant_enabled")[:1] == [0]:
        return "fake_quant_enabled is 0"
    scale, zero = names[f"{grid_name}.scale"], names.get(f"{grid_name}.zero_point")
    if zero is None:
        return f"there is no {grid_name}.zero_point"
    low, high = (numbers(f"activation_post_process.{end}") for end in ("min_val", "max_val"))
    observed = names.get(f"{grid_name}.activation_post_process.min_val")
    if observed is not None and not (low and all(abs(number) < float("inf") for number in (*low, *high))):
        return "nothing was observed yet"
    if not all(0 < number < float("inf") for number in numbers("scale")):
        return "its scale is no positive number"
    count = prod(scale.shape)
    folded = [names[f"{prefix}bn.{part}"] for part in ("weight", "running_var") if f"{prefix}bn.{part}" in names]
    axis = None if count == 1 else next((place for place, side in enumerate(tensor.shape[:2]) if side == count), -1)
    if axis == -1 or scale.value is None or zero.value is None:
        return f"{count} scales do not fit its shape {list(tensor.shape)}"
    parts = [tensor, scale, zero, *(folded if len(folded) == 2 else [])]
    try:
        typed = [ops.typed(part.value, part.dtype, part.shape) for part in parts if part.value is not None]
        value = ops.node("fake_quantize", *typed, axis=axis, low=grid.low, high=grid.high)
        if tensor.dtype != "F32":
            value = ops.typed(ops.cast(value, "F32", tensor.shape, tensor.dtype), tensor.dtype, tensor.shape)
    except ValueError as error:
        return str(error)
    channels = axis is not None or (observed is not None and observed.shape != ())  # of one channel, a vector of one
    return value, f"INT{grid.bits} per-{'channel' if channels else 'tensor'}"


def _numbers(tensor: Tensor | None, read: Read) -> list[float]:
    """The elements of a small tensor; none where it lies in no plain run of bytes."""
    kind = _KINDS.get(tensor.dtype) if tensor is not None else None
    if tensor is None or kind is None or type(tensor.value) is not Extent or prod(tensor.shape) > MAX_CHANNELS:
        return []
    return list(struct.unpack(f"<{prod(tensor.shape)}{kind}", read(tensor.value)))


def _range(scales: list[float], zeros: list[float], lows: list[float], highs: list[float]) -> Grid:
    """The whole numbers of a grid. A state dict does not say them: they follow from the observed range and the scale. Where it is
    symmetric, the scale is the largest magnitude over 2^(bits - 1), or over that less a half or less one (torch
    ``ao/quantization/observer.py``, ``_calculate_qparams``; its fused kernels do as FBGEMM); else the range over the steps."""
    usual = Grid(0, 255, False) if any(zero > 127 for zero in zeros) else Grid(-128, 127, False)
    if not scales or not len(scales) == len(zeros) == len(lows) == len(highs):
        return usual
    top = max(range(len(scales)), key=lambda place: max(-lows[place], highs[place]))
    scale, zero = scales[top], zeros[top]
    low, high = min(lows[top], 0.0), max(highs[top], 0.0)
    if not (0 < scale < float("inf") and abs(zero) < 1 << 20 and max(-low, high) < scale * (1 << 20)):
        return usual
    if zero in (0, 128) and all(number == zero for number in zeros):
        steps = 2 * max(-low, high) / scale
        for bits in range(2, 17):
            half = 1 << (bits - 1)
            if -2.05 <= steps - 2 * half <= 0.05:
                ranges = list(zip(scales, lows, highs, strict=True))
                narrow = any(
                    -least > most * 1.0001 and abs(-least - one * (half - 1)) < 1e-5 * -least for one, least, most in ranges
                )
                wide = any(2 * max(-least, most) > one * (2 * half - 1.9) for one, least, most in ranges)
                return Grid(int(zero) - half + narrow, int(zero) + half - 1, True, narrow or wide)
    steps, start = (high - low) / scale, round(zero) + round(low / scale)
    for bits in range(2, 17):
        for last in ((1 << bits) - 1, (1 << bits) - 2):
            if abs(steps - last) < 0.05:
                return Grid(start, start + last, True)
    return usual


def _converted(tensors: Sequence[Tensor], names: Mapping[str, Tensor], wholes: set[str]) -> Found:
    """A state dict after conversion: weights under their layers' names, and the scales of activations as stored."""
    taken = set(names) | wholes
    out: list[Tensor] = []
    integers = floats = 0
    channels = False
    bits = 8
    for tensor in tensors:
        stem, _, last = tensor.name.rpartition(".")
        if stem.endswith(_PACKED) and last in ("0", "1") and tensor.view != "stored":
            name = f"{stem.removesuffix(_PACKED)}.{'weight' if last == '0' else 'bias'}"
            if name not in taken:
                taken.add(name)
                if tensor.view == "both":
                    out.append(tensor._replace(view="stored"))
                tensor = tensor._replace(name=name, view="logical")
        elif tensor.view == "both" and _is_activation(tensor, names):
            tensor = tensor._replace(view="stored")
        out.append(tensor)
        if tensor.view == "logical" and isinstance(tensor.value, Node) and tensor.value.op == "dequant.affine":
            integers += prod(tensor.shape)
            channels = channels or len(tensor.value.inputs) == 3
            bits = 32 if tensor.value.args["dtype"] == "I32" else bits
        elif tensor.view != "stored" and len(tensor.shape) > 1:
            floats += prod(tensor.shape)
    label = f"INT{bits} per-{'channel' if channels else 'tensor'}"
    shown = {"quantization": {"method": "torch", "weights": label}}
    return Found(out, label if integers >= 0.9 * (integers + floats) else "mixed", shown)


def _is_activation(tensor: Tensor, names: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is the scale or the zero point of what a converted layer puts out: one number each, side by side."""
    if prod(tensor.shape) != 1 or tensor.dtype not in ("F32", "I64"):
        return False
    other = tensor.name.replace("zero_point", "scale") if tensor.dtype == "I64" else tensor.name
    match = _ACTIVATIONS.match(other)
    if match is None:
        return False
    pair = (names.get(other), names.get(f"{match['stem']}zero_point{match['number'] or ''}"))
    return all(one is not None and prod(one.shape) == 1 for one in pair)
