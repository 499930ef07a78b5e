"""``modelhub watch``: the daemon, in the foreground."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from modelhub.cli.app import define
from modelhub.errors import ModelNotFound, UsageError


@define(
    "watch",
    examples=["modelhub watch /mnt/models", "modelhub watch --poll 300", "modelhub watch --json | jq .event"],
)
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option(
    "--poll",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="Look at every root so often instead of waiting for events, which do not arrive from everywhere.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as lines of JSON on stdout.")
@click.option("--log", "style", type=click.Choice(["text", "json"]), default="text", help="The form of the log on stderr.")
@click.option("--verbose", is_flag=True, help="Log every checkpoint and every look.")
def command(paths: tuple[str, ...], poll: float | None, as_json: bool, style: str, verbose: bool) -> int:
    """Each PATH becomes a root; without one, all roots are watched. Network drives are polled, others tell of changes
    themselves. Rules in config.toml say what is to be done with what turns up (see 'modelhub rules'). SIGHUP reads config.toml
    again; SIGTERM or Ctrl-C ends it, and work in hand is taken up again by the next one."""
    from modelhub.catalog import Catalog
    from modelhub.catalog.database import SMALL_CACHE
    from modelhub.daemon.logs import Log
    from modelhub.daemon.loop import Daemon
    from modelhub.rules.apart import check

    check()
    _prepare()
    with Catalog.open(cache=SMALL_CACHE) as catalog:
        add_roots(catalog, paths)
        if not catalog.roots():
            raise UsageError("there is nothing to watch", "modelhub watch PATH makes PATH a root")
        daemon = Daemon(catalog, poll=poll, log=Log(style, "debug" if verbose else "info"), tell=_print if as_json else None)
        return daemon.run()


def _prepare() -> None:
    """Have a child make the catalog, or migrate it: what that takes would stay in a daemon's memory for months. Errors are left
    for the daemon to meet."""
    child = os.fork()  # this process has one thread yet
    if child:
        os.waitpid(child, 0)
        return
    from modelhub.catalog import Catalog

    try:
        Catalog.open().close()
    finally:
        os._exit(0)


def add_roots(catalog: Any, paths: tuple[str, ...]) -> None:
    """Make roots of ``paths``, but of those that lie in one."""
    for given in paths:
        path = os.path.abspath(os.path.expanduser(given))
        known = [root.path for root in catalog.roots() if root.names is None]
        if any(path == root or path.startswith(root.rstrip("/") + "/") for root in known):
            continue
        if not os.path.isdir(path):
            raise ModelNotFound(
                f"{given} is not a directory", "give a directory; what is not mounted yet can be watched once it was"
            )
        catalog.add_root(path)


def _print(message: dict[str, Any]) -> None:
    """One event, as a line that its reader gets at once."""
    import json
    import time

    from modelhub.model import iso, printable

    fields = {name: printable(value) if isinstance(value, str) else value for name, value in message.items()}
    try:
        sys.stdout.write(json.dumps({"time": iso(time.time_ns()), **fields}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the events any more; the watch goes on
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
