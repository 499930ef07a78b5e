"""``modelhub convert``: write a model in another format or precision. `modelhub.plan` decides, `modelhub.convert` does; this
asks and tells."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define, failed
from modelhub.cli.common import Session, json_option, model_argument

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modelhub.convert import ConvertReport
    from modelhub.errors import ModelhubError
    from modelhub.plan import ConvertOptions, Plan


class SizeParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A number of bytes with a unit: 5GB, 700MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from modelhub.errors import UsageError
        from modelhub.where import quantity

        if isinstance(value, int):
            return value
        try:
            found = int(quantity(value, "size", param.opts[0] if param else "a size"))
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if found < 1:
            self.fail("it must be more than nothing", param, ctx)
        return found


class TargetParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """``FORMAT[:RECIPE]``, completed from the plugins."""

    name = "target"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from modelhub import plugins

        found = plugins.get()
        formats = [format for format in found.formats.values() if format.create]
        targets = [(format.name, format.title) for format in formats]
        for recipe in found.recipes:
            fitting = [format for format in formats if not recipe.formats or format.name in recipe.formats]
            targets += [(f"{format.name}:{recipe.name}", recipe.title) for format in fitting]
        return [CompletionItem(name, help=title) for name, title in targets if name.startswith(incomplete)]


def output_options(function: Any) -> Any:
    """The options that say where the output goes and how it is made; shared with ``quantize``."""
    for option in reversed(
        (
            click.option("-o", "--output", metavar="PATH", help="Where it goes; beside the source otherwise."),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
            click.option("--force", is_flag=True, help="Replace what is there."),
            click.option(
                "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads to work with; one a core otherwise."
            ),
            click.option(
                "--max-shard-size",
                metavar="SIZE",
                type=SizeParameter(),
                help="Split the output into files of at most SIZE, like 5GB.",
            ),
            click.option("--no-verify", is_flag=True, help="Do not read the output back to compare it with its source."),
            click.option("--skip-unsupported", is_flag=True, help="Leave out tensors that cannot be converted (sparse ones)."),
            click.option("--background", is_flag=True, help="Queue it, and return at once; 'modelhub jobs' tells how far it is."),
            json_option,
        )
    ):
        function = option(function)
    return function


@define(
    "convert",
    examples=[
        "modelhub convert pytorch_model.bin --to safetensors",
        "modelhub convert llama --to safetensors:bf16 -o /mnt/out/ --max-shard-size 5GB",
        "modelhub convert ./model.ckpt --to safetensors --dry-run",
        "modelhub convert llama --to safetensors --background",
    ],
)
@model_argument()
@click.option(
    "--to", "to", metavar="FORMAT[:RECIPE]", type=TargetParameter(), required=True, help="As listed by 'modelhub plugins'."
)
@output_options
def command(model: str, to: str, as_json: bool, dry_run: bool, background: bool, output: str | None, **options: Any) -> int:
    """The source is never touched, and nothing is overwritten without --force. What was written is read back and compared with
    its source before it gets its name."""
    with Session() as session:
        return run(session, model, to, output, convert_options(**options), dry_run, background, as_json)


def convert_options(
    *, force: bool, threads: int | None, max_shard_size: int | None, no_verify: bool, skip_unsupported: bool
) -> ConvertOptions:
    from modelhub.plan import ConvertOptions

    return ConvertOptions(
        force=force, threads=threads, max_shard_size=max_shard_size or 0, verify=not no_verify, skip_unsupported=skip_unsupported
    )


def run(
    session: Session,
    reference: str,
    to: str,
    output: str | None,
    options: ConvertOptions,
    dry_run: bool,
    background: bool,
    as_json: bool,
) -> int:
    """Plan, tell the plan, carry it out (or have it carried out), tell what was done."""
    from modelhub.plan import make_plan

    plan = make_plan(session.model(reference), to, output, options, session.plugins)
    if dry_run:
        if as_json:
            text.print_json(plan.to_json())
        else:
            _print_plan(plan)
        return 0
    if not as_json:
        _print_route(plan)
        sys.stdout.flush()
    if background:
        return _queue(session, plan, to, as_json)
    report = _carry_out(session, plan, to, as_json)
    if as_json:
        text.print_json(report.to_json())
    else:
        _print_report(report)
    return 0


def _carry_out(session: Session, plan: Plan, to: str, as_json: bool) -> ConvertReport:
    from modelhub.cli.progress import Progress

    with Progress("converting", total=plan.size) as progress:

        def tell(stage: str, nbytes: int) -> None:
            progress.advance(nbytes, stage)

        if plan.source.id is not None:
            from modelhub.jobs.front import convert

            def end(error: ModelhubError) -> None:
                progress.close()
                failed(error.code, error.message, error.hint, error.exit_status, as_json)

            report, made = convert(session.catalog, plan, to, session.plugins, tell, end)
            session.tell("converted", made)
            return report
        from modelhub.convert import carry_out

        report = carry_out(plan, session.plugins, tell)  # what the catalog does not know leaves no trace in it
    session.record(report)
    return report


def _queue(session: Session, plan: Plan, to: str, as_json: bool) -> int:
    from modelhub.errors import ConversionError
    from modelhub.jobs.front import queue
    from modelhub.model import printable

    if plan.size > plan.free:
        raise ConversionError(
            f"{plan.directory} has {plan.free:,} bytes free, the output takes {plan.size:,}", "name another place with -o PATH"
        )
    job = queue(session.catalog, plan, to)
    if as_json:
        text.print_json(
            {
                "job": job.id,
                "state": job.state,
                "source": printable(plan.source.absolute_path),
                "output": printable(plan.output),
                "format": plan.format.name,
                "recipe": plan.recipe.name if plan.recipe else None,
            }
        )
    else:
        text.line(f"   job {job.id} is queued; 'modelhub jobs show {job.id}' tells how far it is")
    return 0


def _print_route(plan: Plan) -> None:
    source = plan.source
    what = " ".join(part for part in (source.format, source.precision) if part)
    recipe = f" with {plan.recipe.name}" if plan.recipe else ""
    text.line(f"{source.absolute_path} ({what}, {text.size(source.size)})")
    text.line(f"-> {plan.output} ({plan.format.name}{recipe})")
    for loss in plan.losses:
        sys.stdout.write("   " + text.style("note", text.YELLOW) + text.escape(f": {loss}") + "\n")


def _print_plan(plan: Plan) -> None:
    from collections import Counter

    _print_route(plan)
    changes = Counter(plan.changed.values())
    same = len(plan.table.tensors) - sum(changes.values())
    text.pairs(
        [
            ("   route", " -> ".join(plan.route)),
            (
                "   tensors",
                ", ".join([f"{same:,} as they are"] * bool(same) + [f"{n:,} from {a} to {b}" for (a, b), n in changes.items()]),
            ),
            ("   size", f"{text.size(plan.size)}, {text.size(plan.free)} free there"),
        ]
    )
    if plan.size > plan.free:
        text.line("   there is not enough room for it")
    text.line("nothing was written (--dry-run)")


def _print_report(report: ConvertReport) -> None:
    files = f" in {text.plural(len(report.files), 'file')}" if len(report.files) > 1 else ""
    speed = f", {text.size(int(report.size / report.seconds))}/s" if report.size > 50_000_000 and report.seconds else ""
    text.line(
        f"   {text.plural(len(report.tensors), 'tensor')}, {text.size(report.size)}{files} in "
        f"{text.seconds(report.seconds)}{speed}"
    )
    measured = [tensor for tensor in report.tensors if tensor.get("rmse") is not None]
    if measured:
        worst = min(measured, key=lambda tensor: tensor["snr"] if tensor.get("snr") is not None else float("inf"))
        if worst.get("snr") is not None:
            text.line(
                f"   {text.plural(len(measured), 'tensor')} re-encoded; the worst is {worst['name']}: {worst['snr']:.1f} "
                "dB signal to noise"
            )
    if report.overflows:
        name, number = max(report.overflows.items(), key=lambda item: item[1])
        line = (
            f"{text.plural(sum(report.overflows.values()), 'value')} too large for the new precision, most in {name} ({number:,})"
        )
        sys.stdout.write("   " + text.style("overflow", text.RED) + text.escape(f": {line}") + "\n")
    if report.verified:
        sys.stdout.write("   " + text.style("verified", text.GREEN) + ": read back and compared with the source\n")
    else:
        text.line("   not verified (--no-verify)")
