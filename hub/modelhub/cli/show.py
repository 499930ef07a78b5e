"""``modelhub show``: everything that is known about one model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option, model_argument

if TYPE_CHECKING:
    from modelhub.lineage import Graph
    from modelhub.model import Model
    from modelhub.types import Node, Tensor

TENSORS = (
    text.Column("name", "NAME", shrink=20, middle=True),
    text.Column("dtype", "DTYPE"),
    text.Column("shape", "SHAPE"),
    text.Column("nbytes", "BYTES", align=">"),
    text.Column("offset", "OFFSET", align=">", drop=2),
    text.Column("file", "FILE", shrink=12, middle=True, drop=1),
    text.Column("note", "NOTE", shrink=10, drop=1),
)
VERSIONS = (
    text.Column("version", "VERSION", align=">"),
    text.Column("format", "FORMAT"),
    text.Column("precision", "PRECISION"),
    text.Column("size", "SIZE", align=">"),
    text.Column("indexed", "INDEXED"),
    text.Column("replaced", "REPLACED"),
    text.Column("aliases", "ALIASES", shrink=10),
    text.Column("digest", "DIGEST", shrink=16, drop=1),
)
SHOWN_FILES = 8
SHOWN_BASES = 8
LONG = 200
"""Metadata longer than this (a chat template) is cut, except with ``--json``."""


@define(
    "show",
    examples=[
        "modelhub show llama@prod",
        "modelhub show ./model.safetensors --tensors",
        "modelhub show llama-q4 --lineage",
        "modelhub show 3fa8 --json",
    ],
)
@model_argument()
@click.option("--tensors", is_flag=True, help="List every tensor: dtype, shape, and where its bytes lie.")
@click.option("--lineage", is_flag=True, help="Draw what it was made from and what was made of it, over all generations.")
@click.option("--versions", is_flag=True, help="List the contents that its place has had, and the aliases that pin them.")
@json_option
def command(model: str, tensors: bool, lineage: bool, versions: bool, as_json: bool) -> int:
    """MODEL may be any file or directory: it need not have been scanned. With --json, --lineage adds 'graph': nodes, and edges
    between them by number, node 0 being the MODEL; --versions adds 'versions', the present one first."""
    with Session() as session:
        found = session.model(model)
        if as_json:
            document = found.to_json(details=True)
            if _is_adapter(found):
                document["bases"] = [_place(base) for base in _bases(session, found)]
            if tensors:
                document["tensors"] = [tensor_json(tensor) for tensor in found.table().tensors]
            if lineage:
                document["graph"] = _graph(session, found).to_json()
            if versions:
                document["versions"] = _versions(session, found)
            text.print_json(document)
        else:
            _print(found, not lineage)
            if _is_adapter(found):
                _print_bases(_bases(session, found))
            if lineage:
                from modelhub.cli.tree import print_lineage

                sys.stdout.write("\n")
                print_lineage(_graph(session, found))
            if versions:
                sys.stdout.write("\n")
                text.table([_version_row(row) for row in _versions(session, found)], VERSIONS)
            if tensors:
                sys.stdout.write("\n")
                text.table([_tensor_row(tensor, found) for tensor in found.table().tensors], TENSORS)
    return 0


def _is_adapter(model: Model) -> bool:
    """By its own word: plugins are not loaded to show a model."""
    return bool(model.metadata.get("adapter"))


def _bases(session: Session, model: Model) -> list[Model]:
    """The models of the catalog that an adapter may have been made for."""
    from modelhub.combine import bases_of

    return bases_of(model, session.catalog, session.plugins)


def _place(model: Model) -> dict[str, Any]:
    from modelhub.model import printable

    return {"id": model.id, "name": printable(model.name), "path": printable(model.absolute_path)}


def _print_bases(bases: list[Model]) -> None:
    if bases:
        sys.stdout.write("\nbases that it fits\n")
        for base in bases[:SHOWN_BASES]:
            text.line(f"  {base.absolute_path}")
        if len(bases) > SHOWN_BASES:
            text.line(f"  and {len(bases) - SHOWN_BASES} more")


def _graph(session: Session, model: Model) -> Graph:
    from modelhub.lineage import lineage

    return lineage(session.catalog, model)


def _versions(session: Session, model: Model) -> list[dict[str, Any]]:
    return session.catalog.history(model) if model.id else []


def _version_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "size": text.size(row["size"]),
        "indexed": row["indexed"][:10],
        "replaced": (row["replaced"] or "")[:10],
        "aliases": ", ".join(row["aliases"]),
    }


def _print(model: Model, made_from: bool) -> None:
    sys.stdout.write(text.style(text.escape(model.name), text.BOLD) + "\n")
    paths = model.file_paths
    container = f" ({model.container})" if model.container and model.container != model.format else ""
    dtypes = ", ".join(f"{text.count(number)} {name}" for name, number in model.dtypes.items())
    text.pairs(
        [
            ("id", model.id),
            ("path", model.absolute_path),
            ("format", model.format + container),
            ("state", model.state + (f": {model.reason}" if model.reason else "")),
            ("architecture", model.architecture),
            ("precision", model.precision),
            ("parameters", f"{model.parameters:,} ({dtypes})" if dtypes else ""),
            ("tensors", f"{model.tensors:,}"),
            ("size", f"{text.size(model.size)} in {text.plural(len(paths), 'file')}"),
            ("modified", model.modified),
            ("digest", model.digest),
            ("version", model.version if model.version > 1 else None),
            ("derived from", model.derived_from),
            ("aliases", ", ".join(model.aliases)),
            ("tags", ", ".join(f"{key}={value}" for key, value in model.tags.items())),
            *(("note", note) for note in model.notes),
        ]
    )
    if model.metadata:
        _section("metadata")
        text.pairs((f"  {text.escape(key)}", _brief(value)) for key, value in model.metadata.items())
    if model.stored:
        _section("stored beside the tensors")
        text.pairs((f"  {text.escape(key)}", _brief(value)) for key, value in model.stored.items())
    if len(paths) > 1:
        _section("files")
        for path in paths[:SHOWN_FILES]:
            text.line(f"  {path}")
        if len(paths) > SHOWN_FILES:
            text.line(f"  and {len(paths) - SHOWN_FILES} more")
    if made_from and model.lineage:
        _section("made from")
        for parent in model.lineage:
            recipe = f" with {parent['recipe']}" if parent.get("recipe") else ""
            by = " ".join(part for part in (parent.get("plugin"), parent.get("plugin_version")) if part)
            what = f"{parent.get('kind', 'conversion')}{recipe} by {by}" if by else f"{parent.get('kind', 'conversion')}{recipe}"
            text.line(
                f"  {(parent.get('parent') or '')[:8]}  {parent.get('path')}  ({what}, {parent.get('created')})".replace(
                    "    ", "  "
                )
            )
    if model.findings:
        _section("findings")
        for finding in model.findings:
            print_finding(finding.severity, finding.check, finding.message, finding.tensor, finding.file)


def print_finding(severity: str, check: str, message: str, tensor: str, file: str, lead: str = "  ") -> None:
    """One line of a finding, the severity coloured."""
    where = f" (tensor {tensor})" if tensor else ""
    place = f" [{file}]" if file and file not in message else ""
    sys.stdout.write(
        lead + text.style(severity, text.STATES.get(severity, "")) + text.escape(f" {check}: {message}{where}{place}") + "\n"
    )


def _section(title: str) -> None:
    sys.stdout.write("\n" + text.style(title, text.BOLD) + "\n")


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        shown = ", ".join(f"{key}={_brief(item)}" for key, item in value.items())
    elif isinstance(value, list):
        shown = ", ".join(_brief(item) for item in value[:20]) + (", ..." if len(value) > 20 else "")
    else:
        shown = str(value)
    return text.shorten(shown, LONG)


def tensor_json(tensor: Tensor) -> dict[str, Any]:
    """A tensor as ``show --tensors --json`` prints it. One that is not a plain run of bytes has a ``value`` (its expression)
    instead of a place."""
    from modelhub import ops
    from modelhub.model import printable
    from modelhub.table import tensor_nbytes
    from modelhub.types import Extent

    found: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if isinstance(tensor.value, Extent):
        found |= {"file": printable(tensor.value.file), "offset": tensor.value.offset, "nbytes": tensor.value.nbytes}
    else:
        found |= {"file": None, "offset": None, "nbytes": tensor_nbytes(tensor)}
        if tensor.value is not None:
            found["value"] = ops.to_json(tensor.value)
    if tensor.view != "both":
        found["view"] = tensor.view
    if tensor.unsupported:
        found["unsupported"] = tensor.unsupported
    return found


def _made(node: Node) -> str:
    """The op that makes a value: how its bytes are seen says little where they have to be made first."""
    from modelhub.types import Node

    inner = node.inputs[0] if node.op == "reshape" else None
    return inner.op if isinstance(inner, Node) else node.op


def _tensor_row(tensor: Tensor, model: Model) -> dict[str, str]:
    from modelhub.table import tensor_nbytes
    from modelhub.types import Extent, Node

    extent = tensor.value if isinstance(tensor.value, Extent) else None
    notes = [
        tensor.unsupported,
        f"by {_made(tensor.value)}" if isinstance(tensor.value, Node) else "",
        tensor.view if tensor.view != "both" else "",
    ]
    several = len(model.file_paths) > 1
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": "x".join(map(str, tensor.shape)) or "scalar",
        "nbytes": f"{tensor_nbytes(tensor):,}",
        "offset": str(extent.offset) if extent else "",
        "file": extent.file.rsplit("/", 1)[-1] if extent and several else "",
        "note": ", ".join(note for note in notes if note),
    }
