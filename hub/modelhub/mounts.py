"""Which file system a path lies on, from ``/proc/self/mountinfo`` (proc(5)). Says nothing where that is not there."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "davfs", "glusterfs", "gpfs",
    "lustre", "beegfs", "orangefs", "ocfs2", "gfs2", "ncpfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs",
    "fuse.ceph", "fuse.davfs2", "fuse.juicefs", "fuse.gcsfuse", "fuse.smbnetfs", "fuse.goofys", "fuse.curlftpfs",
    "fuse.mount-s3", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "prl_fs",
})  # fmt: skip
"""File systems that other hosts may write to: locks and shared memory do not work over them, and events do not arrive."""

_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo: where, of what type, from what source, ``major:minor`` of the device, and which directory of the
    source is mounted there ("/" but for bind mounts and subvolumes)."""

    point: str
    type: str
    source: str
    device: str
    root: str = "/"

    @property
    def origin(self) -> str:
        """The source and, as ``findmnt`` writes it, the directory of it: what tells one bind mount from another."""
        return self.source if self.root == "/" else f"{self.source}[{self.root}]"

    @property
    def network(self) -> bool:
        return self.type in NETWORK


def mounts(text: str | None = None) -> list[Mount]:
    """Every mount of this process, in mount order; ``text`` is for reading another's. Empty where there is no mountinfo."""
    if text is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except OSError:
            return []
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(), after.split(" ")
        if separator and len(fields) >= 5 and len(rest) >= 2:
            found.append(Mount(_unescape(fields[4]), rest[0], _unescape(rest[1]), fields[2], _unescape(fields[3])))
    return found


def mount_of(path: str, among: list[Mount] | None = None) -> Mount | None:
    """The mount that ``path`` (which need not exist; links in it are followed) lies on: the longest point, the last of equals."""
    path = os.path.realpath(path)
    best: Mount | None = None
    for mount in mounts() if among is None else among:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _unescape(field: str) -> str:
    r"""Blanks, tabs, newlines and backslashes stand as ``\040`` and so on."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
