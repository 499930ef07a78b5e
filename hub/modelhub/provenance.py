"""Takes a finished conversion into the catalog: the output, what it was made from, and how. Writes no model file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelhub.detect import inspect_path

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.convert import ConvertReport
    from modelhub.model import Model
    from modelhub.plugins import Plugins


def record(catalog: Catalog, report: ConvertReport, plugins: Plugins) -> Model | None:
    """Record the output of ``report``; the Model it became. None, and nothing recorded, where neither the source nor the
    output's place is known to the catalog: a path that was never scanned leaves no trace."""
    from modelhub.catalog.content import Provenance

    plan = report.plan
    if plan.source.id is None and not any(_inside(report.output, root.path) for root in catalog.roots()):
        return None
    output = catalog.add(inspect_path(report.output, plugins.formats))
    by = plugins.plugin_of("format", plan.format.name)
    how = Provenance(
        plugin=by.name,
        plugin_version=by.version,
        recipe=plan.recipe.name if plan.recipe else "",
        options={"to": plan.format.name, "max_shard_size": plan.options.max_shard_size, **plan.options.extra},
        errors={
            tensor["name"]: {key: tensor[key] for key in ("rmse", "snr", "max_error")}
            for tensor in report.tensors
            if "rmse" in tensor
        },
    )
    source = plan.source if plan.source.id is None else catalog.refresh(plan.source)
    catalog.record_output(output, [source], how)
    return catalog.refresh(output)


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
