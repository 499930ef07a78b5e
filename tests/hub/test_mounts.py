"""Which file system a path lies on."""

from __future__ import annotations

import pytest
from modelhub.catalog.database import refuse_network
from modelhub.errors import CatalogError
from modelhub.mounts import Mount, mount_of, mounts

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /mnt/models rw,relatime - nfs4 server:/export/models rw,vers=4.2
41 40 0:36 / /mnt/models/with\040blank rw - fuse.sshfs me@host:/x rw
42 22 0:37 / /data rw - tmpfs tmpfs rw
43 22 8:17 / /data rw - xfs /dev/sdb1 rw
short line
"""


def test_reads_mountinfo() -> None:
    found = mounts(MOUNTINFO)
    assert [mount.point for mount in found] == ["/", "/mnt/models", "/mnt/models/with blank", "/data", "/data"]
    assert found[1] == Mount("/mnt/models", "nfs4", "server:/export/models", "0:35")


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/mnt/models/llama/x.safetensors", "nfs4"),
        ("/mnt/models", "nfs4"),
        ("/mnt/modelsandmore", "ext4"),
        ("/mnt/models/with blank/x", "fuse.sshfs"),
        ("/data/x", "xfs"),  # mounted over the first
        ("/", "ext4"),
    ],
)
def test_the_innermost_mount_counts(path: str, type: str) -> None:
    mount = mount_of(path, mounts(MOUNTINFO))
    assert mount is not None
    assert mount.type == type
    assert mount.network == (type not in ("ext4", "xfs"))


def test_this_machine_has_mounts() -> None:
    assert mount_of("/proc/self") == next(mount for mount in reversed(mounts()) if mount.point == "/proc")


def test_a_catalog_on_a_network_drive_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelhub.mounts.mounts", lambda text=None: [Mount("/", "nfs", "server:/root", "0:1")])
    with pytest.raises(CatalogError, match=r"network file system \(nfs at /\).*MODELHUB_CATALOG"):
        refuse_network("/home/me/catalog.db")
