"""``modelhub convert``: write a model in another format or precision. `modelhub.plan` decides, `modelhub.convert` does; this
asks and tells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define, failed
from modelhub.cli.common import ModelParameter, Session, model_argument
from modelhub.cli.outputs import TargetParameter, convert_options, output_options

if TYPE_CHECKING:
    from modelhub.convert import ConvertReport
    from modelhub.errors import ModelhubError
    from modelhub.model import Model
    from modelhub.plan import ConvertOptions, Plan


@define(
    "convert",
    examples=[
        "modelhub convert pytorch_model.bin --to safetensors",
        "modelhub convert llama --to safetensors:bf16 -o /mnt/out/ --max-shard-size 5GB",
        "modelhub convert ./model.ckpt --to safetensors --dry-run",
        "modelhub convert openllama --to gguf:q4_k_m --imatrix llama.imatrix",
        "modelhub convert openllama --to gguf:auto --target-bpw 4.5",
        "modelhub convert model.gguf --to gguf --set general.license=mit --in-place",
        "modelhub convert llama --to safetensors --background",
    ],
)
@model_argument()
@click.option(
    "--to", "to", metavar="FORMAT[:RECIPE]", type=TargetParameter(), required=True, help="As listed by 'modelhub plugins'."
)
@output_options
@click.option(
    "--base", metavar="MODEL", type=ModelParameter(), help="What an adapter was made for, where its conversion needs to know."
)
@click.option("--in-place", is_flag=True, help="With --set and --unset: change the metadata of the source itself.")
def command(
    model: str, to: str, base: str | None, as_json: bool, dry_run: bool, background: bool, output: str | None, **options: Any
) -> int:
    """The source is never touched (but for --in-place), and nothing is overwritten without --force. What was written is read
    back and compared with its source before it gets its name."""
    with Session() as session:
        given = _with_base(session, model, base, convert_options(**options))
        return run(session, model, to, output, given, dry_run, background, as_json)


def _with_base(session: Session, reference: str, base: str | None, options: ConvertOptions) -> ConvertOptions:
    """The options with the place of an adapter's base: the one that is named, else the only one in the catalog that it fits."""
    from dataclasses import replace

    if base is not None:
        return replace(options, extra={**options.extra, "base": session.model(base).absolute_path})
    from modelhub.combine import bases_of, combination_of

    model = session.model(reference)
    found = bases_of(model, session.catalog, session.plugins) if combination_of(model, session.plugins) else []
    return replace(options, extra={**options.extra, "base": found[0].absolute_path}) if len(found) == 1 else options


def run(
    session: Session,
    reference: str,
    to: str,
    output: str | None,
    options: ConvertOptions,
    dry_run: bool,
    background: bool,
    as_json: bool,
    parts: Sequence[Model] = (),
) -> int:
    """Plan, tell the plan, carry it out (or have it carried out), tell what was done. ``parts``: what
    ``options.combine`` names."""
    from modelhub.cli.convert_report import print_plan, print_report, print_route
    from modelhub.plan import make_plan

    plan = make_plan(session.model(reference), to, output, options, session.plugins, parts)
    if dry_run:
        if as_json:
            text.print_json(plan.to_json())
        else:
            print_plan(plan)
        return 0
    if not as_json:
        print_route(plan)
        sys.stdout.flush()
    if background:
        return _queue(session, plan, to, as_json)
    report = _carry_out(session, plan, to, as_json)
    if as_json:
        text.print_json(report.to_json())
    else:
        print_report(report)
    return 0


def _carry_out(session: Session, plan: Plan, to: str, as_json: bool) -> ConvertReport:
    from modelhub.cli.progress import Progress

    with Progress("converting", total=plan.size) as progress:

        def tell(stage: str, nbytes: int) -> None:
            progress.advance(nbytes, stage)

        if plan.source.id is not None and not plan.options.in_place:
            from modelhub.jobs.front import convert

            def end(error: ModelhubError) -> None:
                progress.close()
                failed(error.code, error.message, error.hint, error.exit_status, as_json)

            report, made = convert(session.catalog, plan, to, session.plugins, tell, end)
            session.tell("converted", made)
            return report
        from modelhub.convert import carry_out

        report = carry_out(plan, session.plugins, tell)  # what the catalog does not know leaves no trace in it
    if plan.options.in_place:
        if plan.source.id is not None:  # what was read back was read where it was written first
            session.catalog.add(session.inspect_path(plan.output))
        return report
    session.record(report)
    return report


def _queue(session: Session, plan: Plan, to: str, as_json: bool) -> int:
    from modelhub.errors import ConversionError, UsageError
    from modelhub.jobs.front import queue
    from modelhub.model import printable

    if plan.options.in_place:
        raise UsageError("--in-place is done at once, not in the background")
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
