"""What several commands share: options, the MODEL argument and its completion, the session of one command."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modelhub.catalog import Catalog
    from modelhub.convert import ConvertReport
    from modelhub.found import Found
    from modelhub.model import Model
    from modelhub.plugins import Plugins
    from modelhub.workers import ParsePool

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document with raw numbers.")


def quiet_option(what: str) -> Callable[[F], F]:
    return click.option("-q", "--quiet", is_flag=True, help=f"Print {what} only, one a line.")


def show_log() -> None:
    """What modelhub and its plugins log under the name ``modelhub`` goes to stderr, a line each, over a line of progress."""
    import logging
    import sys

    from modelhub.cli import text

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            wipe = "\r\x1b[K" if sys.stderr.isatty() else ""
            click.echo(f"{wipe}modelhub: {text.escape(record.getMessage())}", err=True)

    logger = logging.getLogger("modelhub")
    logger.handlers = [Lines(logging.INFO)]
    logger.setLevel(logging.INFO)


class Session:
    """What a command works with, each opened when it is first asked for: `catalog`, `plugins`, `pool`. Closes what it opened."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if "pool" in self.__dict__:
            self.pool.close()
        if "catalog" in self.__dict__:
            self.catalog.close()

    @cached_property
    def catalog(self) -> Catalog:
        from modelhub.catalog import Catalog

        return Catalog.open()

    @cached_property
    def plugins(self) -> Plugins:
        from modelhub import plugins

        show_log()
        return plugins.get()

    @cached_property
    def pool(self) -> ParsePool:
        from modelhub.workers import ParsePool

        return ParsePool()

    def model(self, reference: str) -> Model:
        """The model that ``reference`` names."""
        from modelhub.resolve import resolve

        return resolve(self.catalog, reference, pool=self, warn=warn)

    def inspect_path(self, path: str) -> Found:
        """One look at a path, in a worker; the pool is there only once this is asked."""
        return self.pool.inspect_path(path)

    def known(self, reference: str) -> Model:
        """The same, in the catalog: a path that was never scanned is taken in, so that something can be said of it."""
        found = self.model(reference)
        return found if found.id is not None or found.found is None else self.catalog.add(found.found)

    def record(self, report: ConvertReport) -> None:
        """Note in the catalog what a conversion made, and of what."""
        from modelhub.provenance import record

        made = record(self.catalog, report, self.plugins)
        if made is not None:
            self.tell("converted", made)

    def tell(self, kind: Literal["converted", "verified", "failed"], model: Model) -> None:
        """Let the plugins' observers know of something that happened to a model of the catalog."""
        from modelhub.declared import Event

        if model.id:
            self.plugins.emit(Event(kind=kind, checkpoint=model.id, path=model.absolute_path))


def warn(message: str) -> None:
    """Say on stderr what is not as it seems, though the command goes on."""
    from modelhub.cli import text

    click.echo(f"modelhub: warning: {text.escape(message)}", err=True)


class ModelParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A MODEL: kept as it was typed, completed from the catalog and the file system."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        files = [CompletionItem(incomplete, type="file")]
        if incomplete.startswith((".", "/", "~")):
            return files
        # One or the other: a shell that is asked for files forgets everything else.
        return [CompletionItem(name) for name in _references(incomplete)] or files


def _references(start: str) -> list[str]:
    """Names, aliases and ids that begin with ``start``; none where the catalog cannot be read, for a shell is waiting."""
    from modelhub.errors import ModelhubError

    try:
        with Session() as session:
            return session.catalog.complete(start)
    except (ModelhubError, OSError):
        return []


def model_argument(name: str = "model", **settings: Any) -> Callable[[F], F]:
    """A positional MODEL (or several, with ``nargs=-1``)."""
    metavar = settings.pop("metavar", name.upper())
    return click.argument(name, type=ModelParameter(), metavar=metavar, **settings)
