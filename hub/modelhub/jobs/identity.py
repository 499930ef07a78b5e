"""Who runs a job: a process, named so that its death can be told on its own host. Ends no process."""

from __future__ import annotations

import functools
import os
import socket


@functools.cache
def _host() -> str:
    return socket.gethostname().replace(":", "_") or "localhost"


def owner() -> str:
    """This process, as ``host:pid:start``. Its start, in clock ticks since boot, tells it from a later one with the same pid."""
    return f"{_host()}:{os.getpid()}:{_started('self')}"


def is_alive(owner: str) -> bool | None:
    """Whether the process that ``owner`` names is alive; None where it is another host's, and only its lease can tell."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    started = owner.rpartition(":")[2]
    if host != _host():
        return None
    return rest.isdecimal() and _started(rest) == started


def _started(pid: str) -> str:
    """When a process began; "" for one that is not there, or is dead and waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
