"""``modelhub diff``: two models, tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelhub.cli import text
from modelhub.cli.app import answer, define
from modelhub.cli.common import Session, json_option, model_argument
from modelhub.errors import ModelhubError

if TYPE_CHECKING:
    from modelhub.compare import TensorDifference

COLUMNS = (
    text.Column("name", "TENSOR", shrink=20, middle=True),
    text.Column("what", "RESULT"),
    text.Column("a", "A", shrink=10),
    text.Column("b", "B", shrink=10),
    text.Column("max_error", "MAX ERROR", align=">"),
    text.Column("relative", "RELATIVE", align=">"),
    text.Column("cosine", "COSINE", align=">", drop=2),
    text.Column("snr", "SNR dB", align=">", drop=1),
)


@define("diff", examples=["modelhub diff llama@prod llama@next", "modelhub diff a.safetensors b.bin --json"])
@model_argument("a")
@model_argument("b")
@click.option("--all", "everything", is_flag=True, help="List the tensors that are the same, too.")
@json_option
def command(a: str, b: str, everything: bool, as_json: bool) -> int:
    """Tensors are joined by name; those of another dtype are decoded and measured. Where two formats have no name in common, one
    model is taken as a conversion would have it: a GGUF file beside the directory that it came from. Ends with status 1 where the
    models differ."""
    from modelhub.cli.progress import Progress
    from modelhub.compare import changes, comparable, compare_tables

    with Session() as session:
        left, right = session.model(a), session.model(b)
        one, other, naming = comparable(left, right, session.plugins)
        if not one.tensors and not other.tensors:
            raise ModelhubError(f"{left.name} and {right.name}: neither has tensors to compare", "cmp compares files as they are")
        with Progress("comparing", total=min(left.size, right.size)) as progress:
            difference = compare_tables(one, other, progress=progress.advance)
    answer.status = 0 if difference.equal else 1
    if as_json:
        text.print_json(difference.to_json() | ({"names": naming} if naming else {}))
        return answer.status
    if naming:
        text.line(f"tensors by the names that they have in {naming}")
    rows = [_row(tensor) for tensor in difference.tensors if everything or not tensor.same]
    rows += [{"name": name, "what": "only in A"} for name in difference.only_a]
    rows += [{"name": name, "what": "only in B"} for name in difference.only_b]
    if rows:
        text.table(rows, COLUMNS)
    count = changes(difference)
    parts = [
        f"{count['same']:,} same",
        f"{count['different']:,} different",
        f"{count['only_a']:,} only in A",
        f"{count['only_b']:,} only in B",
    ]
    said = ", ".join(part for part in parts if not part.startswith("0 "))
    text.line(f"{'equal' if difference.equal else 'different'}: {said}".rstrip(": "))
    return answer.status


def _row(tensor: TensorDifference) -> dict[str, str]:
    errors = tensor.errors
    shapes = tensor.a.shape != tensor.b.shape
    sides = [f"{side.dtype}{' ' + 'x'.join(map(str, side.shape)) if shapes else ''}" for side in (tensor.a, tensor.b)]
    row = {"name": tensor.name, "what": "same" if tensor.same else tensor.why or "differs", "a": sides[0], "b": sides[1]}
    if errors:
        row |= {
            "max_error": text.number(errors.maximum),
            "relative": text.number(errors.relative),
            "cosine": "" if errors.cosine is None else f"{errors.cosine:.6f}",
            "snr": "" if errors.snr is None else f"{errors.snr:.1f}",
        }
    return row
