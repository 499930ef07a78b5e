"""Which observer a root gets, and hearing of mounts."""

from __future__ import annotations

import selectors
import sys
import threading
import time
from pathlib import Path

import pytest
from modelhub.mounts import Mount, mounts
from modelhub.watch.choose import is_polled, mount_at, mounts_below, observer_for
from modelhub.watch.mounttable import MountTable

from tests.hub.mounting import mounting

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no mount table but Linux's")


@pytest.mark.parametrize(
    "fstype",
    [
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "virtiofs", "vboxsf",
        "autofs", "fuse", "fuseblk", "fuse.sshfs", "fuse.rclone", "fuse.something-new", "ocfs2", "gfs2",
    ],
)  # fmt: skip
def test_rule_2_what_others_may_write_to_is_polled(fstype: str) -> None:
    choice = observer_for("/mnt/models", Mount("/mnt/models", fstype, "server:/models", "0:40"))
    assert choice.observer == "poll"
    assert choice.reason == f"{fstype}: changes made elsewhere raise no events"
    assert is_polled(fstype)


@linux
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "bcachefs", "ntfs3", "exfat"])
def test_rule_2_a_local_file_system_has_events(fstype: str) -> None:
    assert observer_for("/data", Mount("/data", fstype, "/dev/sdb1", "8:17")) == ("events", fstype)


@linux
def test_rule_2_where_nothing_is_known_of_mounts_there_are_events() -> None:
    assert observer_for("/data", None) == ("events", "local")


@pytest.mark.parametrize("fstype", ["ext4", "nfs4"])
def test_rule_2_a_flag_overrides(fstype: str) -> None:
    choice = observer_for("/data", Mount("/data", fstype, "x", "8:17"), poll=30)
    assert choice == ("poll", "every 30 s, as asked for")


def table(tmp_path: Path) -> list[Mount]:
    return [
        Mount("/", "ext4", "/dev/sda1", "8:1"),
        Mount(str(tmp_path / "net"), "nfs4", "server:/x", "0:40"),
        Mount(str(tmp_path / "net" / "usb"), "ext4", "/dev/sdc1", "8:33"),
    ]


@linux
def test_rule_18_links_are_followed_but_never_on_a_drive_that_may_not_answer(tmp_path: Path) -> None:
    local, net = tmp_path / "local", tmp_path / "net"
    local.mkdir()
    net.mkdir()
    (net / "inner").mkdir()
    (local / "to-net").symlink_to(net / "inner")
    (local / "relative").symlink_to("../net/inner")
    (local / "again").symlink_to("to-net/deep/er")
    (local / "round").symlink_to("round")
    (net / "to-local").symlink_to(local)
    found = table(tmp_path)

    def fstype(path: Path) -> str:
        mount = mount_at(str(path), found)
        assert mount is not None
        return mount.type

    assert fstype(local) == "ext4"
    assert fstype(local / "to-net") == fstype(local / "relative" / "x") == fstype(local / "again") == "nfs4"
    assert fstype(local / "to-net" / ".." / "x") == "nfs4"
    # It would have to be read from the drive.
    assert fstype(net / "to-local") == "nfs4"
    assert fstype(tmp_path / "network") == "ext4"
    assert fstype(local / "round" / "x") == "ext4"
    assert fstype(Path("/")) == "ext4"
    assert [mount.type for mount in mounts_below(str(tmp_path), found)] == ["nfs4", "ext4"]
    assert mounts_below(str(tmp_path / "ne"), found) == []


@linux
def test_rule_3_a_mount_is_heard_of_at_once(tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    with MountTable() as heard, selectors.DefaultSelector() as selector, mounting() as mounted:
        selector.register(heard.fileno(), heard.events)
        assert not heard.changed()
        for change in (lambda: mounted.tmpfs(point), lambda: mounted.unmount(point)):
            while selector.select(0):  # other processes mount too
                heard.changed()
            timer = threading.Timer(0.1, change)
            timer.start()
            assert selector.select(10)
            timer.join()
            assert heard.changed()
        assert not any(mount.point == str(point) for mount in mounts())


@linux
def test_rule_3_nothing_is_heard_where_nothing_is_mounted() -> None:
    with MountTable() as heard, selectors.DefaultSelector() as selector:
        selector.register(heard.fileno(), heard.events)
        deadline = time.monotonic() + 20
        while selector.select(0.2):  # others on this machine may mount something at the same time
            heard.changed()
            assert time.monotonic() < deadline, "it never falls silent"
        assert not heard.changed()


def test_where_there_is_no_mount_table_nothing_is_ever_heard(tmp_path: Path) -> None:
    with MountTable(str(tmp_path / "none")) as heard:
        assert heard.fileno() == -1
        assert not heard.changed()
