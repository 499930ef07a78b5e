"""Takes a finished conversion into the catalog: the output, what it was made from, and how. Writes no model file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelhub.detect import inspect_path

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.content import Provenance
    from modelhub.convert import ConvertReport
    from modelhub.engine.write import Written
    from modelhub.model import Model
    from modelhub.plan import Plan
    from modelhub.plugins import Plugins


def record(catalog: Catalog, report: ConvertReport, plugins: Plugins) -> Model | None:
    """Record the output of ``report``; the Model it became. None, and nothing recorded, where neither the source nor the
    output's place is known to the catalog: a path that was never scanned leaves no trace."""
    plan = report.plan
    if plan.source.id is None and not any(_inside(report.output, root.path) for root in catalog.roots()):
        return None
    sources = [each if each.id is None else catalog.refresh(each) for each in (plan.source, *plan.parts)]
    return record_output(catalog, report.output, sources, how(plan, report.written, plugins), plugins)


def record_output(
    catalog: Catalog, path: str, sources: Sequence[Model], made: Provenance, plugins: Plugins, digests: Mapping[str, bytes] = {}
) -> Model:
    """Take the output at ``path`` in as what ``made`` says of it; the Model it became. ``digests``: the SHA-256 of its files, as
    far as they were taken."""
    output = catalog.add(inspect_path(path, plugins.formats))
    for file, digest in digests.items():  # first: they may say that it is not what stood there before
        catalog.set_file_digest(file, digest, os.stat(file))
    output = catalog.refresh(output) if digests else output
    catalog.record_output(output, sources, made)
    return catalog.refresh(output)


def how(plan: Plan, written: Written, plugins: Plugins, rule: str = "") -> Provenance:
    """How a plan's output was made; ``rule``: what asked for it."""
    from modelhub.catalog.content import Provenance

    by = plugins.plugin_of("format", plan.format.name)
    return Provenance(
        plugin=by.name,
        plugin_version=by.version,
        recipe=plan.recipe.name if plan.recipe else "",
        options=options_of(plan),
        errors={
            name: {key: value for key, value in errors.to_json().items() if key in ("rmse", "snr", "max_error")}
            for name, errors in written.errors.items()
        },
        rule=rule,
    )


def options_of(plan: Plan) -> Mapping[str, Any]:
    """What besides the recipe shapes a plan's output: two of the same content that agree in both are the same work."""
    return {"to": plan.format.name, **plan.options.shaping()}


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
