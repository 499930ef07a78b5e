"""Tells systemd how the daemon is: sd_notify(3), a datagram to the socket that ``$NOTIFY_SOCKET`` names. Does nothing where there
is none, so that the daemon need not know who started it."""

from __future__ import annotations

import contextlib
import os
import socket
import time

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(*states: str) -> bool:
    """Send assignments like `READY`, ``STATUS=watching 3 roots``; whether somebody was told. Never fails, and never waits."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return False
    address = "\0" + place[1:] if place[0] == "@" else place
    message = "\n".join(state.replace("\n", " ") for state in states)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        return sender.sendto(message.encode("utf-8", "backslashreplace"), address) > 0
    return False


def reloading() -> bool:
    """Say that the configuration is read again; `READY` says that it was."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def interval() -> float | None:
    """Seconds between two `WATCHDOG`: half of what systemd waits for one. None where it waits for none of this process."""
    try:
        microseconds = int(os.environ["WATCHDOG_USEC"])
        if int(os.environ.get("WATCHDOG_PID") or os.getpid()) != os.getpid() or microseconds <= 0:
            return None
    except (KeyError, ValueError):
        return None
    return microseconds / 2e6
