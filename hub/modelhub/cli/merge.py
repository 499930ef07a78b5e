"""``modelhub merge``: adapters or a delta put on a base, or the delta between two models, written in any format and precision.

`modelhub.combine` makes one table of them; from there on it is a conversion like any other."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli.app import define
from modelhub.cli.common import ModelParameter, Session, model_argument
from modelhub.cli.convert import run
from modelhub.cli.outputs import TargetParameter, convert_options, output_options

if TYPE_CHECKING:
    from modelhub.combine import Part


@define(
    "merge",
    examples=[
        "modelhub merge llama-3.2-1b --adapter ./my-lora",
        "modelhub merge llama-3.2-1b --adapter ./style --scale 0.7 --adapter ./facts --scale 1 --to gguf:q4_k_m",
        "modelhub merge llama-7b --delta vicuna-7b-delta-v1.1 -o ./vicuna-7b",
        "modelhub merge ./vicuna-7b --minus llama-7b -o ./my-delta",
    ],
)
@model_argument("base")
@click.option(
    "--adapter", "adapters", metavar="MODEL", type=ModelParameter(), multiple=True, help="An adapter; several follow each other."
)
@click.option(
    "--scale",
    "scales",
    metavar="X",
    type=float,
    multiple=True,
    help="How strongly the adapters apply: one for all, or one for each.",
)
@click.option("--delta", metavar="MODEL", type=ModelParameter(), help="A model to add: the output is BASE + MODEL.")
@click.option("--minus", metavar="MODEL", type=ModelParameter(), help="A model to subtract: the output is a delta, BASE - MODEL.")
@click.option(
    "--to", "to", metavar="FORMAT[:RECIPE]", type=TargetParameter(), help="As listed by 'modelhub plugins'; BASE's own otherwise."
)
@output_options
def command(
    base: str,
    adapters: tuple[str, ...],
    scales: tuple[float, ...],
    delta: str | None,
    minus: str | None,
    to: str | None,
    as_json: bool,
    dry_run: bool,
    background: bool,
    output: str | None,
    **options: Any,
) -> int:
    """The sum is computed in float32, slice by slice, and rounded once to BASE's own dtypes, or encoded as a recipe says:
    nothing is written in between. No source is touched."""
    from dataclasses import replace

    with Session() as session:
        parts = _parts(adapters, scales, delta, minus)
        models = [session.model(part.path) for part in parts]
        combine = [part._replace(path=model.absolute_path) for part, model in zip(parts, models, strict=True)]
        given = replace(convert_options(**options), combine=tuple(tuple(part) for part in combine))
        target = to or session.model(base).format
        return run(session, base, target, output, given, dry_run, background, as_json, models)


def _parts(adapters: tuple[str, ...], scales: tuple[float, ...], delta: str | None, minus: str | None) -> list[Part]:
    from modelhub.combine import ADAPTER, DELTA, MINUS, Part
    from modelhub.errors import UsageError

    kinds = [(ADAPTER, adapters), (DELTA, (delta,) if delta else ()), (MINUS, (minus,) if minus else ())]
    given = [(kind, names) for kind, names in kinds if names]
    if len(given) != 1:
        raise UsageError("merge takes one of --adapter, --delta and --minus", "modelhub merge BASE --adapter MODEL")
    kind, names = given[0]
    if wrong := [scale for scale in scales if not isfinite(scale)]:
        raise UsageError(f"--scale {wrong[0]} is no strength", "a number like 0.7 is")
    if scales and (kind != ADAPTER or len(scales) not in (1, len(names))):
        raise UsageError("--scale is for adapters: one for all of them, or one for each")
    each = scales if len(scales) == len(names) else (scales or (1.0,)) * len(names)
    return [Part(kind, name, scale) for name, scale in zip(names, each, strict=True)]
