"""``modelhub quantize``: short for ``convert`` to the format that has the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelhub.cli.app import define
from modelhub.cli.common import Session, model_argument
from modelhub.cli.convert import run
from modelhub.cli.outputs import convert_options, output_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modelhub.model import Model
    from modelhub.plugins import Plugins


class RecipeParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A recipe's name, completed from the plugins."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from modelhub import plugins

        return [
            CompletionItem(recipe.name, help=recipe.title)
            for recipe in plugins.get().recipes
            if recipe.name.startswith(incomplete)
        ]


@define(
    "quantize", examples=["modelhub quantize llama bf16", "modelhub quantize ./model.safetensors f16 -o /tmp/small.safetensors"]
)
@model_argument()
@click.argument("recipe", metavar="RECIPE", type=RecipeParameter())
@output_options
def command(model: str, recipe: str, as_json: bool, dry_run: bool, background: bool, output: str | None, **options: Any) -> int:
    """Short for 'modelhub convert MODEL --to FORMAT:RECIPE', FORMAT being what -o is named for, else the model's own where it
    has RECIPE."""
    with Session() as session:
        to = f"{target_format(session.model(model), recipe.lower(), output, session.plugins)}:{recipe}"
        return run(session, model, to, output, convert_options(**options), dry_run, background, as_json)


def target_format(model: Model, recipe: str, output: str | None, plugins: Plugins) -> str:
    """The format that ``recipe`` is for: the one that ``output`` is named for, the model's own or its container's, else the
    first that has it."""
    from modelhub.targets import format_with

    return format_with(recipe, (model.format, model.container), plugins, output=output)
