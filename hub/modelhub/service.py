"""The systemd unit that runs ``modelhub watch``: its text, and the file it belongs into. Runs nothing, and asks systemd nothing.

The daemon parses files of strangers, so it gets no more than it needs: the drives, its home and its catalog to write to, the rest
of the machine to read. What each line is for: systemd.exec(5), systemd.service(5).
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelhub.errors import ModelhubError, UsageError
from modelhub.model import printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog

NAME = "modelhub.service"
MARK = "# Written by 'modelhub service install'"
"""How a unit begins that we may write over."""
_TEMPORARY = ("/tmp", "/var/tmp")
"""What PrivateTmp= hides."""
_BESIDE = 2 * 10**9
"""Bytes for the daemon and its scans, beside what jobs may take."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the text of a unit depends on. ``command``: words, the first one absolute. ``writable``: directories; those of
    ``drives`` need not be there. ``user``: whom a system unit runs as, "" for root. ``memory``: bytes."""

    command: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]
    writable: tuple[str, ...]
    drives: tuple[str, ...]
    user: str
    memory: int


def gather(catalog: Catalog) -> Facts:
    """The facts as they are now. UsageError where a unit cannot hold one of them, or must not."""
    from modelhub import config
    from modelhub.home import catalog_url, home
    from modelhub.mounts import mount_of

    settings = config.settings()
    url = catalog_url()
    environ = [("MODELHUB_HOME", home())]
    if os.environ.get("MODELHUB_CATALOG"):
        environ.append(("MODELHUB_CATALOG", _without_password(url)))
    if os.environ.get("MODELHUB_DISABLE"):
        environ.append(("MODELHUB_DISABLE", os.environ["MODELHUB_DISABLE"]))
    writable = [home()]
    if catalog.database.path:
        # A link is followed by whoever writes beside the catalog.
        writable.append(os.path.dirname(os.path.realpath(catalog.database.path)))
    roots = catalog.roots()
    if not roots:
        raise UsageError("there is nothing to watch", "modelhub roots add PATH makes PATH a root")
    pinned = {"/", *(mount.point for mount in map(mount_of, writable) if mount is not None)}
    places = [_writable(root.path, root.offline, pinned) for root in roots]
    places += [_writable(place, True, pinned) for place in _outputs(settings.rules)]
    return Facts(
        command=(*program(), "watch"),
        environ=tuple(environ),
        writable=_outermost(writable),
        drives=_outermost(place for place in places if place),
        user=_owner(home()),
        memory=settings.jobs.workers * settings.jobs.memory + _BESIDE,
    )


def program() -> tuple[str, ...]:
    """How this modelhub is run, by absolute paths."""
    script = os.path.join(os.path.dirname(sys.executable), "modelhub")
    return (script,) if os.access(script, os.X_OK) else (sys.executable, "-m", "modelhub")


def unit(facts: Facts, *, system: bool) -> str:
    """The text of the unit."""
    everything = (*facts.command[:1], *facts.writable, *facts.drives)
    temporary = any(path == place or path.startswith(place + "/") for path in everything for place in _TEMPORARY)
    edit = "systemctl edit" if system else "systemctl --user edit"
    lines = [
        f"{MARK}, which writes it anew; changes belong into '{edit} {NAME}'.",
        "",
        "[Unit]",
        "Description=modelhub: watches models on drives, and keeps their catalog",
        # No drive is required: one that is away is offline, and is seen when it is back.
        *(["After=local-fs.target remote-fs.target network-online.target", "Wants=network-online.target"] if system else []),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={_command(facts.command)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        *(f"Environment={quote(f'{name}={value}')}" for name, value in facts.environ),
        *([f"User={facts.user}"] if system and facts.user else []),
        "Restart=on-failure",
        "RestartSec=30",
        "RestartPreventExitStatus=2",
        "TimeoutStartSec=120",
        "WatchdogSec=120",
        "KillMode=mixed",
        "TimeoutStopSec=10",
        "",
        "# It gives way to others.",
        "Nice=10",
        "IOSchedulingClass=idle",
        f"MemoryHigh={facts.memory}",
        "TasksMax=1024",
        "LimitNOFILE=65536",
        "",
        "# It writes into its home, its catalog and the drives. An output elsewhere needs a ReadWritePaths= of its own.",
        "ProtectSystem=strict",
        *(f"ReadWritePaths={quote(path)}" for path in facts.writable),
        *(f"ReadWritePaths={quote('-' + path)}" for path in facts.drives),
        *(["# PrivateTmp=yes would hide what of this is in /tmp."] if temporary else ["PrivateTmp=yes"]),
        "PrivateDevices=yes",
        "NoNewPrivileges=yes",
        # Root without capabilities could not read what is not root's.
        *([f"CapabilityBoundingSet={'' if facts.user else _CAPABILITIES}"] if system else []),
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
        "",
        "[Install]",
        f"WantedBy={'multi-user' if system else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


_CAPABILITIES = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_LEASE"


def quote(text: str) -> str:
    """``text`` as one word of a unit file, with nothing in it that systemd would read as something else."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{printable(text)} is not UTF-8, and systemd takes no such path", "rename it, or watch it without systemd"
        ) from error
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise UsageError(f"{text!r} has control characters, which a unit cannot hold", "rename it, or watch it without systemd")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _command(words: Sequence[str]) -> str:
    first, *rest = words
    if any(char in first for char in "\"'\\"):  # systemd takes no program of such a name, but takes it as a word
        first, rest = "/bin/sh", ["-c", 'exec "$0" "$@"', *words]
    # A dollar begins a variable, but for the program itself.
    return " ".join([quote(first), *(quote(word).replace("$", "$$") for word in rest)])


def path_of(*, system: bool) -> str:
    """Where the unit belongs."""
    if system:
        return os.path.join("/etc/systemd/system", NAME)
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "systemd", "user", NAME)


def read(path: str) -> str | None:
    """The unit that is there, or None."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_ours(text: str) -> bool:
    """Whether `install` wrote it."""
    return text.startswith(MARK)


def install(path: str, text: str, *, force: bool = False) -> None:
    """Write the unit, whole or not at all. A unit that somebody else wrote is replaced with ``force`` only."""
    there = read(path)
    if there is not None and not is_ours(there) and not force:
        raise ModelhubError(f"{path} was not written by modelhub", "--force replaces it")
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{NAME}.{os.getpid()}.tmp")
    try:
        os.makedirs(directory, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ModelhubError(
            f"{path} cannot be written: {error.strerror}", "'modelhub service show' prints the unit, so that you can put it there"
        ) from error


def uninstall(path: str, *, force: bool = False) -> bool:
    """Remove the unit; False where there is none."""
    there = read(path)
    if there is None:
        return False
    if not is_ours(there) and not force:
        raise ModelhubError(f"{path} was not written by modelhub", "--force removes it all the same")
    try:
        os.unlink(path)
    except OSError as error:
        raise ModelhubError(f"{path} cannot be removed: {error.strerror}", "remove it by hand") from error
    return True


# --- facts ----------------------------------------------------------------------------------------------------------


def _writable(path: str, offline: bool, pinned: Collection[str]) -> str | None:
    """What must be writable so that ``path`` is.

    A service sees mounts come and go, but what is writable is pinned down in its own view of the file system. To pin a directory
    inside of a drive would keep that drive mounted, and the daemon would not notice that it is away: so it is the mount point
    itself that is named, whether or not something is mounted there. What the service sits on itself (``pinned``) stays anyway.
    """
    from modelhub.mounts import mount_of

    if offline or not os.path.isdir(path):
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        return path if path != "/" else None
    mount = mount_of(path)
    return mount.point if mount is not None and mount.point not in pinned else path


def _outputs(rules: Iterable[object]) -> list[str]:
    """The directories outside of every root that rules write into, as far as they are always the same."""
    found = []
    for rule in rules:
        output = rule.get("output") if isinstance(rule, dict) else None
        if isinstance(output, str) and output.startswith("/"):
            found.append(os.path.dirname(output.partition("{")[0]))
    return found


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Each once, in order, without what lies inside another."""
    every = dict.fromkeys(map(os.path.normpath, paths))
    return tuple(path for path in every if not any(path != other and path.startswith(other.rstrip("/") + "/") for other in every))


def _owner(home: str) -> str:
    """Whose home it is: "" for root's, and the number of a user without a name."""
    try:
        user = os.stat(home).st_uid
    except OSError:
        user = os.getuid()
    if user == 0:
        return ""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _without_password(url: str) -> str:
    """The catalog's URL, which everybody can read in a unit."""
    scheme, separator, rest = url.partition("://")
    if separator and (":" in rest.rpartition("@")[0] or "password=" in rest):
        raise UsageError(
            f"the catalog's URL ({scheme}://...) has a password in it, and everybody can read a unit",
            'write catalog = "URL" into config.toml in the home, let only its owner read that, and unset MODELHUB_CATALOG',
        )
    return url
