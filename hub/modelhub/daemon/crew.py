"""The daemon's job workers: as many as are wanted while there is work, none otherwise. They claim jobs by themselves."""

from __future__ import annotations

from collections.abc import Callable

from modelhub.daemon.worker import Process

IDLE = "20"
"""Seconds for which a job worker waits for more before it ends."""


class Crew:
    """``most``: how many may work at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.members: list[Process] = []
        self.backoff = 0.0
        self.not_before = 0.0

    def wanted(self, jobs: int, now: float, joined: Callable[[Process], None]) -> None:
        """See to it that ``jobs`` (waiting or at work) have hands."""
        while len(self.members) < min(self.most, jobs) and now >= self.not_before:
            member = Process("modelhub.jobs.worker", ["--events", "--idle", IDLE])
            self.members.append(member)
            joined(member)

    def left(self, member: Process, now: float) -> int:
        """A worker has ended: with which status. One that fails at its start is not started again at once."""
        status = member.process.wait()
        if member in self.members:
            self.members.remove(member)
        if status > 0 and now - member.started < 5.0:
            self.backoff = min(60.0, max(0.5, self.backoff * 2))
            self.not_before = now + self.backoff
        else:
            self.backoff = 0.0
        member.close()
        return status
