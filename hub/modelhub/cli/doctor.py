"""``modelhub doctor``: what is wrong with this installation, and what to do about it. Repairs nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import NamedTuple

import click

from modelhub.cli import text
from modelhub.cli.app import answer, define
from modelhub.cli.common import Session, json_option
from modelhub.errors import ModelhubError

FEW_WATCHES = 65536
"""Fewer inotify watches than this are soon used up: each directory takes one."""


class Diagnosis(NamedTuple):
    """One line. ``status``: ok, note (good to know), warning (works, with a drawback), error (something does not work)."""

    check: str
    status: str
    message: str
    hint: str = ""


@define("doctor", examples=["modelhub doctor", "modelhub doctor --warm", "modelhub doctor --json"])
@click.option("--warm", is_flag=True, help="Make ready what is made once: the compiled kernels of codecs.")
@json_option
def command(as_json: bool, warm: bool) -> int:
    """Looks at the home, the catalog, the roots and their file systems, the limits on watching, plugins and extras. Ends with
    status 1 where something does not work."""
    found: list[Diagnosis] = []
    with Session() as session:
        for examine in (
            _installation,
            _home,
            lambda: _catalog(session),
            lambda: _roots(session),
            _watching,
            lambda: _daemon(session),
            lambda: _jobs(session),
            lambda: _plugins(session),
            _extras,
            *([_kernels] if warm else ()),
        ):
            try:
                found += examine()
            except (ModelhubError, OSError) as error:
                hint = error.hint if isinstance(error, ModelhubError) else ""
                found.append(
                    Diagnosis("catalog", "error", error.message if isinstance(error, ModelhubError) else str(error), hint)
                )
    found = list(dict.fromkeys(found))
    errors = sum(item.status == "error" for item in found)
    answer.status = 1 if errors else 0
    if as_json:
        text.print_json({"ok": not errors, "checks": [item._asdict() for item in found]})
        return answer.status
    colours = {"ok": text.GREEN, "note": text.DIM, "warning": text.YELLOW, "error": text.RED}
    for item in found:
        line = text.escape(f"{item.check}: {item.message}" + (f"; {item.hint}" if item.hint else ""))
        sys.stdout.write(text.style(f"{item.status:<7}", colours[item.status]) + f"  {line}\n")
    return answer.status


def _kernels() -> Iterator[Diagnosis]:
    import time

    from modelhub import codecs, plugins
    from modelhub.cli.common import show_log

    show_log()
    plugins.get()  # they bring the codecs
    started = time.monotonic()
    ready = [codec for codec in codecs.known() if codec.prepare]
    for use in ("encode", "decode"):  # what weighs by importance, few need: it takes as long again
        for codec in ready:
            assert codec.prepare
            codec.prepare(use)
    yield Diagnosis(
        "kernels", "ok", f"those of {text.plural(len(ready), 'codec')} are ready ({time.monotonic() - started:.1f} s)"
    )


def _installation() -> Iterator[Diagnosis]:
    from modelhub import distribution

    version = f"{distribution.name()} {distribution.version()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    yield Diagnosis("modelhub", "ok", version)


def _home() -> Iterator[Diagnosis]:
    from modelhub import home

    place = home.home()
    above = place
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK | os.X_OK):
        yield Diagnosis("home", "error", f"{place} cannot be written to", "set MODELHUB_HOME to a directory of yours")
    else:
        yield Diagnosis("home", "ok", place + ("" if above == place else " (made when it is needed)"))
    if home.read_config():
        from modelhub import config
        from modelhub.rules.read import check, load_rules

        try:
            config.settings()
            rules = load_rules()
            if rules:
                from modelhub import plugins

                check(rules, plugins.get())
        except ModelhubError as error:
            yield Diagnosis("configuration", "error", error.message, error.hint)
        else:
            more = f", {text.plural(len(rules), 'rule')}" if rules else ""
            yield Diagnosis("configuration", "ok", home.config_path() + more)


def _catalog(session: Session) -> Iterator[Diagnosis]:
    from modelhub.catalog.database import shown

    catalog = session.catalog
    database = catalog.database
    path = database.path
    size = f", {text.size(os.path.getsize(path))}" if path else ""
    wrong = catalog.check()
    for problem in wrong:
        backups = catalog.backups()
        hint = f"the newest backup is {backups[0]}" if backups else "move it away and scan again"
        yield Diagnosis("catalog", "error", f"{path} is damaged: {problem}", hint)
    if not wrong:
        yield Diagnosis("catalog", "ok", f"{path or shown(database.url)}, {text.plural(catalog.count(), 'model')}{size}")


def _roots(session: Session) -> Iterator[Diagnosis]:
    from modelhub.mounts import mount_of, mounts

    among = mounts()
    roots = session.catalog.roots()
    if not roots:
        yield Diagnosis("roots", "note", "there are none yet", "modelhub scan PATH makes PATH one")
    for root in roots:
        mount = mount_of(root.path, among)
        on = f" ({mount.type})" if mount else ""
        if root.offline or not os.path.isdir(root.path):
            yield Diagnosis("root", "warning", f"{root.path} is offline", "mount it, or forget it with: modelhub roots rm")
        elif not os.access(root.path, os.R_OK | os.X_OK):
            yield Diagnosis("root", "error", f"{root.path} cannot be read", "check its owner and mode")
        elif mount and mount.network:
            yield Diagnosis(
                "root",
                "note",
                f"{root.path}{on} is on a network: changes made by other hosts send no events",
                "modelhub watch polls it",
            )
        elif root.scanned is None:
            yield Diagnosis("root", "note", f"{root.path}{on} was never scanned", f"modelhub scan {root.path}")
        else:
            place = "" if os.access(root.path, os.W_OK) else ", read-only: outputs need -o"
            yield Diagnosis("root", "ok", f"{root.path}{on}{place}")


def _watching() -> Iterator[Diagnosis]:
    try:
        with open("/proc/sys/fs/inotify/max_user_watches") as file:
            watches = int(file.read())
    except (OSError, ValueError):
        yield Diagnosis("watching", "note", "this system has no inotify", "changes are found by scanning")
        return
    if watches < FEW_WATCHES:
        hint = f"sysctl fs.inotify.max_user_watches={FEW_WATCHES * 8}"
        yield Diagnosis("watching", "warning", f"{watches:,} directories can be watched, by all programs together", hint)
    else:
        yield Diagnosis("watching", "ok", f"{watches:,} directories can be watched")


def _daemon(session: Session) -> Iterator[Diagnosis]:
    from modelhub.daemon.lock import holder_of

    holder = holder_of(session.catalog)
    if holder is None:
        hint = "modelhub watch, or: modelhub service install" if session.catalog.roots() else ""
        yield Diagnosis("daemon", "note", "nobody watches for this catalog", hint)
        return
    yield Diagnosis("daemon", "ok", str(holder))
    for root, status in session.catalog.daemon_status().get("roots", {}).items():
        if not status.get("answers", True):
            yield Diagnosis("daemon", "error", f"{root} does not answer: its file system hangs", "check the mount")
        elif status.get("error"):
            yield Diagnosis("daemon", "warning", f"{root}: {status['error']}", "it is polled meanwhile")


def _jobs(session: Session) -> Iterator[Diagnosis]:
    counts = session.catalog.jobs.counts()
    failed, waiting = counts.get("failed", 0), counts.get("queued", 0)
    if failed:
        yield Diagnosis("jobs", "warning", f"{text.plural(failed, 'job')} failed", "see: modelhub jobs ls --state failed")
    elif any(counts.values()):
        shown = ", ".join(f"{number:,} {state}" for state, number in sorted(counts.items()) if number)
        yield Diagnosis("jobs", "ok", shown)
    if waiting:
        from modelhub.daemon.lock import alive

        if not alive(session.catalog) and not counts.get("running"):
            yield Diagnosis("jobs", "note", f"{text.plural(waiting, 'job')} wait for somebody to do them", "modelhub watch does")


def _plugins(session: Session) -> Iterator[Diagnosis]:
    status = {"ok": "ok", "partial": "note", "blocked": "note", "clash": "warning", "failed": "error"}
    for report in session.plugins.reports:
        what = f"{report.name} {report.version}" + (f": {report.status}, {report.reason}" if report.status != "ok" else "")
        yield Diagnosis("plugin", status.get(report.status, "warning"), what)


def _extras() -> Iterator[Diagnosis]:
    """What each extra of the distribution asks for, and whether it is there."""
    import re
    from importlib import metadata

    from modelhub import distribution

    try:
        requirements = metadata.requires(distribution.name()) or []
    except metadata.PackageNotFoundError:
        return
    for line in requirements:
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        needed = re.match(r"[A-Za-z0-9._-]+", line)
        if not match or not needed or needed[0] == distribution.name():
            continue
        try:
            version = metadata.version(needed[0])
        except metadata.PackageNotFoundError:
            yield Diagnosis("extra", "note", f"{match[1]}: {needed[0]} is not installed", distribution.install_hint(match[1]))
        else:
            yield Diagnosis("extra", "ok", f"{match[1]}: {needed[0]} {version}")
