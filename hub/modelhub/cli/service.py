"""``modelhub service``: the systemd unit that keeps ``modelhub watch`` running."""

from __future__ import annotations

import sys

import click

from modelhub.cli import text
from modelhub.cli.app import define
from modelhub.cli.common import Session, json_option
from modelhub.errors import UsageError

ACTIONS = ("install", "show", "status", "uninstall")


@define(
    "service",
    examples=[
        "modelhub service install",
        "modelhub service show",
        "modelhub service status",
        "sudo modelhub --home /var/lib/modelhub service install --system",
    ],
)
@click.argument("action", metavar="install | show | status | uninstall", type=click.Choice(ACTIONS))
@click.option("--system", is_flag=True, help="A unit of the machine, in /etc/systemd/system, and not of the user.")
@click.option("--force", is_flag=True, help="Replace or remove a unit that modelhub did not write.")
@json_option
def command(action: str, system: bool, force: bool, as_json: bool) -> int:
    """'install' writes a unit that watches all roots of this catalog, and says which commands of systemctl start it; it runs none
    of them. 'show' prints the unit. 'status' says whether it is there and up to date (exit status 1 where not), and whether a
    daemon is at work. Install it again when roots have been added."""
    from modelhub import service

    if force and action in ("show", "status"):
        raise UsageError(f"{action} changes nothing: --force is for install and uninstall")
    path = service.path_of(system=system)
    if action == "uninstall":
        return _uninstall(path, system, force, as_json)
    with Session() as session:
        unit = service.unit(service.gather(session.catalog), system=system)
        if action == "status":
            return _status(session, path, unit, as_json)
    if action == "show":
        if as_json:
            text.print_json({"path": path, "unit": unit})
        else:
            sys.stdout.write(unit)
        return 0
    service.install(path, unit, force=force)
    commands = [f"{_systemctl(system)} daemon-reload", f"{_systemctl(system)} enable --now {service.NAME}"]
    if as_json:
        text.print_json({"path": path, "unit": unit, "commands": commands})
        return 0
    text.line(f"{path} is written. To start it, now and whenever the {'machine' if system else 'user'} does:")
    for line in commands:
        text.line(f"  {line}")
    if not system:
        text.line("A user's services end with the user's last session, unless: loginctl enable-linger")
    return 0


def _systemctl(system: bool) -> str:
    return "systemctl" if system else "systemctl --user"


def _uninstall(path: str, system: bool, force: bool, as_json: bool) -> int:
    from modelhub import service

    removed = service.uninstall(path, force=force)
    commands = [f"{_systemctl(system)} disable --now {service.NAME}", f"{_systemctl(system)} daemon-reload"]
    if as_json:
        text.print_json({"path": path, "removed": removed, "commands": commands})
    elif not removed:
        text.line(f"there is no {path}")
    else:
        text.line(f"{path} is removed. What runs goes on until:")
        for line in commands:
            text.line(f"  {line}")
    return 0


def _status(session: Session, path: str, unit: str, as_json: bool) -> int:
    from modelhub import service
    from modelhub.daemon.lock import holder_of

    there = service.read(path)
    current = there == unit
    holder = holder_of(session.catalog)
    if as_json:
        daemon = {"pid": holder.pid, "host": holder.host} if holder else None
        text.print_json({"path": path, "installed": there is not None, "current": current, "daemon": daemon})
    else:
        state = "is not there" if there is None else "is up to date" if current else "is not what install would write now"
        text.line(f"{path} {state}" + ("" if current else "; modelhub service install writes it"))
        text.line(f"watched by {holder}" if holder else "nobody watches for this catalog")
    return 0 if current else 1
