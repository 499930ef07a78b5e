"""What several commands share: options, the MODEL argument and its completion, opening the catalog and the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modelhub.catalog import Catalog

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document with raw numbers.")


def quiet_option(what: str) -> Callable[[F], F]:
    return click.option("-q", "--quiet", is_flag=True, help=f"Print {what} only, one a line.")


class ModelParameter(click.ParamType):
    """A MODEL: kept as it was typed, completed from the catalog and the file system."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        files = [CompletionItem(incomplete, type="file")]
        if incomplete.startswith((".", "/", "~")):
            return files
        return [CompletionItem(name, help=text) for name, text in _references(incomplete)] + files


def _references(start: str) -> list[tuple[str, str]]:
    """Names, aliases and ids that begin with ``start``; nothing where the catalog cannot be read, since a shell is waiting."""
    from modelhub.errors import ModelhubError

    try:
        with open_catalog() as catalog:
            return catalog.complete(start, limit=200)
    except (ModelhubError, OSError):
        return []


MODEL = ModelParameter()


def model_argument(name: str = "model", **settings: Any) -> Callable[[F], F]:
    return click.argument(name, type=MODEL, metavar=settings.pop("metavar", name.upper()), **settings)


def open_catalog() -> Catalog:
    from modelhub.catalog import Catalog

    return Catalog.open()
