"""What ``convert`` and ``quantize`` print for people: the route, the plan, and what was done with the error that it cost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelhub.cli import text

if TYPE_CHECKING:
    from modelhub.convert import ConvertReport
    from modelhub.plan import Plan

WORST = 10
COLUMNS = (
    text.Column("name", "TENSOR", shrink=20, middle=True),
    text.Column("dtype", "DTYPE"),
    text.Column("rmse", "RMSE", align=">"),
    text.Column("relative", "RELATIVE", align=">"),
    text.Column("max_error", "MAX ERROR", align=">", drop=3),
    text.Column("cosine", "COSINE", align=">", drop=2),
    text.Column("snr", "SNR dB", align=">"),
)


def print_route(plan: Plan) -> None:
    source = plan.source
    what = " ".join(part for part in (source.format, source.precision) if part)
    recipe = f" with {plan.recipe.name}" if plan.recipe else ""
    text.line(f"{source.absolute_path} ({what}, {text.size(source.size)})")
    for part, (kind, _, scale) in zip(plan.parts, plan.options.combine, strict=True):
        much = f", times {scale:g}" if scale != 1 else ""
        text.line(f"{'-' if kind == 'minus' else '+'}  {part.absolute_path} ({part.format}, {text.size(part.size)}{much})")
    text.line(f"-> {plan.output} ({plan.format.name}{recipe})")
    for loss in plan.losses:
        sys.stdout.write("   " + text.style("note", text.YELLOW) + text.escape(f": {loss}") + "\n")


def print_plan(plan: Plan) -> None:
    print_route(plan)
    from modelhub.types import Node

    changes = Counter(plan.changed.values())
    summed = sum(isinstance(each.value, Node) and each.value.op != "cast" for each in plan.table.tensors) if plan.parts else 0
    same = len(plan.table.tensors) - sum(changes.values()) - summed
    kept = [f"{same:,} as they are"] * bool(same) + [f"{summed:,} computed"] * bool(summed)
    what = ", ".join(kept + [f"{n:,} from {a} to {b}" for (a, b), n in changes.items()])
    work, up_to = ("   tensors", what), ""
    if plan.program:
        memory = f", which may take {text.size(plan.memory)} of memory" if plan.memory else ""
        work, up_to = ("   program", f"{plan.program.title or plan.program.name}{memory}"), "up to "
    size = f"{up_to}{text.size(plan.size)}{_bits(plan)}, {text.size(plan.free)} free there"
    text.pairs([("   route", " -> ".join(plan.route)), work, ("   size", size)])
    if plan.size > plan.free:
        text.line("   there is not enough room for it")
    text.line("nothing was written (--dry-run)")


def print_report(report: ConvertReport) -> None:
    files = f" in {text.plural(len(report.files), 'file')}" if len(report.files) > 1 else ""
    speed = f", {text.size(int(report.size / report.seconds))}/s" if report.size > 50_000_000 and report.seconds else ""
    text.line(
        f"   {text.plural(len(report.tensors), 'tensor')}, {text.size(report.size)}{_bits(report.plan)}{files} in "
        f"{text.seconds(report.seconds)}{speed}"
    )
    measured = [tensor for tensor in report.tensors if tensor.get("snr") is not None]
    if measured:
        _print_worst(sorted(measured, key=lambda tensor: tensor["snr"])[:WORST], len(measured))
    if report.compared:
        _print_compared(report.compared)
    for note in report.notes:
        sys.stdout.write("   " + text.style("note", text.YELLOW) + text.escape(f": {note}") + "\n")
    if report.overflows:
        name, number = max(report.overflows.items(), key=lambda item: item[1])
        line = (
            f"{text.plural(sum(report.overflows.values()), 'value')} too large for the new precision, most in {name} ({number:,})"
        )
        sys.stdout.write("   " + text.style("overflow", text.RED) + text.escape(f": {line}") + "\n")
    if report.verified and report.plan.program:
        sys.stdout.write("   " + text.style("verified", text.GREEN) + ": read back\n")
    elif report.verified:
        sys.stdout.write("   " + text.style("verified", text.GREEN) + ": read back and compared with the source\n")
    else:
        text.line("   not verified (--no-verify)")


def _bits(plan: Plan) -> str:
    """Bits per weight, where the recipe made them fewer."""
    bits = plan.bits_per_weight
    return f", {bits:.2f} bits per weight" if bits and plan.changed else ""


def _print_compared(outputs: Sequence[Mapping[str, Any]]) -> None:
    """What the new model computes, beside what its source does on the same inputs."""
    worst = sorted(outputs, key=lambda one: one.get("max_error") or 0.0, reverse=True)[:WORST]
    which = f"the worst {len(worst)} of {len(outputs):,}" if len(outputs) > len(worst) else f"{len(outputs):,}"
    text.line(f"   run beside its source on the same inputs; outputs, {which}:")
    text.table([_figures(one) for one in worst], [replace(COLUMNS[0], title="OUTPUT"), *COLUMNS[1:]])


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "dtype": row.get("dtype", ""),
        "rmse": text.number(row["rmse"]),
        "relative": "" if row["relative_error"] is None else text.number(row["relative_error"]),
        "max_error": text.number(row["max_error"]),
        "cosine": "" if row["cosine"] is None else f"{row['cosine']:.6f}",
        "snr": "" if row["snr"] is None else f"{row['snr']:.1f}",
    }


def _print_worst(tensors: list[dict[str, Any]], measured: int) -> None:
    """The tensors that encoding changed the most."""
    which = f"the worst {len(tensors)} of {measured:,}" if measured > len(tensors) else "all" if measured > 1 else ""
    text.line(f"   {text.plural(measured, 'tensor')} re-encoded with some error{f'; {which}:' if which else ':'}")
    text.table([_figures(tensor) for tensor in tensors], COLUMNS)
