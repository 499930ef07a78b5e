"""The table of commands, the options they share, and what becomes of errors. Imports no command before it is asked for."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from gettext import gettext
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelhub.errors import ModelhubError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: dict[str, dict[str, str]] = {
    "Look": {
        "scan": "Index checkpoints now; each path becomes a root.",
        "ls": "List what is in the catalog.",
        "show": "Everything known about one model.",
        "diff": "Compare two models, tensor by tensor.",
        "dupes": "Find the same weights in several places.",
    },
    "Work": {
        "verify": "Check models: structure, safety, digests, values.",
        "convert": "Write a model in another format or precision.",
        "quantize": "Write a model with a recipe's precision.",
        "merge": "Put adapters or a delta on a model, or take a delta of two.",
        "jobs": "List jobs, look at one, cancel or retry some.",
        "rules": "List the rules, test what they would do, apply them now.",
    },
    "Keep watch": {
        "watch": "Watch drives, and keep the catalog right as they change.",
        "service": "Keep the watch running with systemd.",
    },
    "Keep order": {
        "alias": "Give a model a name that sticks to its content.",
        "tag": "Set key=value tags on a model, or remove them.",
        "note": "Write notes on a model, and read them.",
        "rm": "Forget a model; delete its files if asked to.",
        "prune": "Say what may go, and do it if asked to.",
        "export": "Write aliases, tags and notes as JSON.",
        "import": "Read aliases, tags and notes from JSON.",
        "roots": "List, add and remove the directories that are scanned.",
    },
    "Help": {
        "plugins": "List plugins, what they bring, and what failed.",
        "doctor": "Say what is wrong with this installation, and what to do.",
        "completion": "Print the shell's completion script.",
    },
}
"""Section -> command -> its one line of help. ``modelhub.cli.NAME`` holds the command (``NAME_`` where NAME is a Python
keyword)."""

COMPLETE = "_MODELHUB_COMPLETE"
"""The variable by which a shell's completion script asks for completions."""

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help ends with examples. Its one-line help comes from `COMMANDS`, so that it is written once."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def define(name: str, *, examples: Sequence[str], **settings: Any) -> Callable[[F], Command]:
    """Make a function the command ``name``. Its docstring goes on where the one-line help ends."""

    def decorate(function: F) -> Command:
        (short,) = (section[name] for section in COMMANDS.values() if name in section)
        more = cleandoc(function.__doc__ or "")
        make = click.command(
            name, cls=Command, examples=examples, short_help=short, help=f"{short}\n\n{more}".strip(), **settings
        )
        made: Command = make(function)
        return made

    return decorate


class Commands(click.Group):
    """The group that imports a command's module when the command is run or its own help is read, never to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not any(cmd_name in section for section in COMMANDS.values()):
            return None
        module = import_module(f"modelhub.cli.{'import_' if cmd_name == 'import' else cmd_name}")
        found: click.Command = module.command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(section.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("A MODEL is"):
            formatter.write_text("a path, an id, NAME@LABEL, NAME:VERSION, a NAME, or the start of an id, tried in this order.")
        with formatter.section("Examples"):
            for line in ("modelhub scan /mnt/models", "modelhub ls 'size>1GB'", "modelhub convert ./model.bin --to safetensors"):
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=line)
            for section in COMMANDS.values()
            for name, line in section.items()
            if name.startswith(incomplete)
        ]
        return names + (click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-") else [])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else "'modelhub --help' lists the commands"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from modelhub import distribution

        click.echo(f"modelhub {distribution.version()}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version and exit.")
@click.option("--home", metavar="DIR", help="Where state is kept, instead of $MODELHUB_HOME.")
@click.option("--catalog", metavar="URL", help="A path or a database URL, instead of $MODELHUB_CATALOG.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (anywhere on the line).")
@click.pass_context
def app(ctx: click.Context, home: str | None, catalog: str | None, debug: bool) -> None:
    """modelhub keeps a catalog of every model checkpoint on your drives, and converts, quantizes and verifies them."""
    # Through the environment, so that worker processes see them too.
    if home:
        os.environ["MODELHUB_HOME"] = os.path.abspath(home)
    if catalog:
        os.environ["MODELHUB_CATALOG"] = catalog if "://" in catalog else os.path.abspath(catalog)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(argv: list[str]) -> int:
    """Run one command line; returns its exit status."""
    debug = _take(argv, "--debug")
    as_json = "--json" in argv[: argv.index("--")] if "--" in argv else "--json" in argv
    _end_gently()
    try:
        try:
            status = _invoke(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except (KeyboardInterrupt, click.Abort):
            if debug:
                raise
            return failed("interrupted", "interrupted", "", 130, as_json)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "modelhub"
            message, _, hint = error.format_message().rstrip(".").partition("; ")
            message = message[:1].lower() + message[1:]
            return failed("usage", message, hint or f"see '{where} --help'", 2, as_json)
        except click.ClickException as error:
            return failed("error", error.format_message(), "", error.exit_code, as_json)
        except ModelhubError as error:
            if debug:
                raise
            return failed(error.code, error.message, error.hint, error.exit_status, as_json)
        except OSError as error:
            if debug:
                raise
            return failed("io", _os_error(error), "", 3, as_json)
        except MemoryError:
            if debug:
                raise
            return failed("memory", "out of memory", "--threads 1 needs the least", 3, as_json)
        except Exception as error:
            if debug:
                raise
            what = f"this is a bug in modelhub: {type(error).__name__}: {error}"
            return failed("internal", what, "run it again with --debug for the traceback, and report it", 3, as_json)
    except BrokenPipeError:
        # Whoever read us has had enough: the answer stands, the rest of it goes nowhere.
        _discard_stdout()
        return answer.status
    return status


def _invoke(argv: list[str]) -> int:
    """What ``app.main`` does, except that it takes a closed pipe for a failure."""
    instruction = os.environ.get(COMPLETE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, "modelhub", COMPLETE, instruction)
    try:
        with app.make_context("modelhub", argv) as context:
            status = app.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return status if isinstance(status, int) else 0


class _Answer:
    """The exit status that a command has settled on before it prints; kept when its reader hangs up."""

    status = 0


answer = _Answer()


def _take(argv: list[str], flag: str) -> bool:
    """Remove ``flag`` from the words before a ``--``; was it there?"""
    end = argv.index("--") if "--" in argv else len(argv)
    kept = [word for word in argv[:end] if word != flag]
    found = len(kept) < end
    argv[:end] = kept
    return found


def failed(code: str, message: str, hint: str, status: int, as_json: bool) -> int:
    """Tell an error: one line on stderr, or with ``--json`` one document on stdout."""
    from modelhub.cli import text

    try:
        if as_json:
            text.print_json({"error": {"code": code, "message": message, "hint": hint}})
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError:  # stdout itself is what cannot be written to
        _discard_stdout()
        as_json = False
    if not as_json:
        line = f"{message}; {hint}" if hint else message
        click.echo(f"modelhub: {'' if code == 'interrupted' else 'error: '}{text.escape(line)}", err=True)
    return status


def _discard_stdout() -> None:
    """Let what is still to be written to stdout go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _os_error(error: OSError) -> str:
    what = error.strerror or str(error) or gettext("input/output error")
    what = what[:1].lower() + what[1:]
    return f"{error.filename}: {what}" if error.filename else what


def _end_gently() -> None:
    """Make SIGTERM unwind like an exception, so that scratch files go; and never die of a character a locale lacks."""
    parent = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() != parent:  # a forked worker that has inherited this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
