"""``modelhub verify``: check models, and say what was found. The checks are `modelhub.verify`'s."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import answer, define
from modelhub.cli.common import Session, json_option, model_argument
from modelhub.cli.show import print_finding
from modelhub.errors import ModelhubError

if TYPE_CHECKING:
    from modelhub.model import Model
    from modelhub.verify import VerifyReport

LEVELS = ("structure", "safety", "digest", "values", "runnable", "all")
SHOWN = 12
"""Errors and warnings of one model that are shown to people; --json has them all."""
LEAD = " " * 8


@define(
    "verify",
    examples=[
        "modelhub verify llama@prod",
        "modelhub verify ./model.bin --level all",
        "modelhub verify ./model.safetensors --against SHA256SUMS",
        "modelhub verify out.safetensors --against pytorch_model.bin --json",
    ],
)
@model_argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--level", type=click.Choice(LEVELS), help="What to check; structure and safety otherwise, which read no weights.")
@click.option("--against", metavar="SOURCE", help="A SHA256SUMS file, or another MODEL whose tensors must be equal.")
@json_option
def command(models: tuple[str, ...], level: str | None, against: str | None, as_json: bool) -> int:
    """structure: extents, bounds, declared sizes. safety: what opening it elsewhere would execute. digest: SHA-256 against what
    was recorded. values: NaN and infinity. runnable: the format's own runtime opens it. Ends with status 1 where something is
    wrong."""
    from modelhub.cli.progress import Progress
    from modelhub.digest import Hashing
    from modelhub.verify import is_sums, levels_of, verify

    whole = "digest" in levels_of(level)
    reports: list[VerifyReport | dict[str, Any]] = []
    with Session() as session, Progress("verifying") as progress, Hashing(progress=progress.advance) as hashing:
        other: Model | str | None = None
        if against is not None:
            other = against if is_sums(against) else session.model(against)
        session.pool.start()
        wanted: list[tuple[str, Model | ModelhubError]] = []
        for reference in models:
            try:
                model = session.model(reference)
                wanted.append((reference, model))
                if whole or isinstance(other, str):
                    hashing.ahead(model.file_paths)
                progress.total += model.size if whole or level == "values" or against else 0
            except ModelhubError as error:
                wanted.append((reference, error))
        for reference, found in wanted:
            try:
                if isinstance(found, ModelhubError):
                    raise found
                report = verify(
                    found,
                    plugins=session.plugins,
                    pool=session.pool,
                    level=level,
                    against=other,
                    catalog=session.catalog if found.id else None,
                    hashing=hashing,
                    progress=progress.advance,
                )
                reports.append(report)
                session.tell("verified" if report.ok else "failed", found)
                answer.status = max(answer.status, 0 if report.ok else 1)
                if not as_json:
                    progress.clear()
                    _print(report)
            except ModelhubError as error:
                if len(models) == 1:
                    raise
                answer.status = max(answer.status, error.exit_status)
                finding = {"check": error.code, "severity": "error", "message": str(error)}
                reports.append(
                    {
                        "model": reference,
                        "ok": False,
                        "level": level or "structure, safety",
                        "findings": [finding],
                        "seconds": 0.0,
                        "bytes": 0,
                    }
                )
                if not as_json:
                    progress.clear()
                    sys.stdout.write(text.style("failed", text.RED) + text.escape(f"  {reference}") + "\n")
                    print_finding("error", error.code, str(error), "", "", LEAD)
    if as_json:
        text.print_json([report if isinstance(report, dict) else report.to_json() for report in reports])
    return answer.status


def _print(report: VerifyReport) -> None:
    word = text.style("ok    ", text.GREEN) if report.ok else text.style("failed", text.RED)
    read = f", {text.size(report.bytes)} read" if report.bytes else ""
    sys.stdout.write(word + text.escape(f"  {report.model.name}  ({report.level}; {text.seconds(report.seconds)}{read})") + "\n")
    # What is wrong comes first, and is never cut away by what is not; of what is only good to know, one of each kind is enough.
    order = {"unsafe": 0, "error": 1, "warning": 2, "info": 3}
    findings = sorted(report.findings, key=lambda finding: order.get(finding.severity, 4))
    wrong = [finding for finding in findings if finding.severity != "info"]
    for finding in wrong[:SHOWN]:
        print_finding(finding.severity, finding.check, finding.message, finding.tensor, finding.file.rsplit("/", 1)[-1], LEAD)
    if len(wrong) > SHOWN:
        text.line(f"{LEAD}and {len(wrong) - SHOWN} more; --json prints them all")
    told = Counter(finding.check for finding in findings if finding.severity == "info")
    for finding in findings:
        if finding.severity == "info" and finding.check in told:
            more = told.pop(finding.check) - 1
            message = finding.message + (f" (and {more} more like this)" if more else "")
            print_finding("info", finding.check, message, finding.tensor, finding.file.rsplit("/", 1)[-1], LEAD)
    sys.stdout.flush()
