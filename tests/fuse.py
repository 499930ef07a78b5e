"""A file system to fail on demand: a directory shown through the kernel's FUSE interface, served by this file as a process.

    python fuse.py BACKING MOUNTPOINT CONTROL

What CONTROL holds decides what becomes of each request: ``ok``; ``slow SECONDS``; ``eio`` or ``estale`` (an error for everything
below the root, which itself can still be seen); ``hang`` (no answer until it says otherwise). Speaks the protocol of
``linux/fuse.h`` (version 7.31) on ``/dev/fuse``: no library is needed, only the right to mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

IN = struct.Struct("<IIQQIIII")
OUT = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
FORGET, BATCH_FORGET, INTERRUPT = 2, 42, 36


class Served:
    """``nodes``: number -> path in the backing directory."""

    def __init__(self, device: int, backing: str, control: str) -> None:
        self.device = device
        self.control = control
        self.nodes = {1: backing}
        self.numbers = {backing: 1}

    def mode(self) -> list[str]:
        try:
            return Path(self.control).read_text().split() or ["ok"]
        except OSError:
            return ["ok"]

    def run(self) -> None:
        while True:
            try:
                data = os.read(self.device, 1 << 18)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, *_ = IN.unpack_from(data)
            body = data[IN.size :]
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            if opcode != 26:
                while (mode := self.mode())[0] == "hang":
                    time.sleep(0.05)
                if mode[0] == "slow":
                    time.sleep(float(mode[1]))
            try:
                if opcode != 26 and mode[0] in ("eio", "estale") and not (node == 1 and opcode in (3, 17, 27, 28, 29)):
                    raise OSError(getattr(errno, mode[0].upper()), "as asked")
                answer, code = self.answer(opcode, node, body), 0
            except OSError as error:
                answer, code = b"", -(error.errno or errno.EIO)
            with contextlib.suppress(OSError):
                os.write(self.device, OUT.pack(OUT.size + len(answer), code, unique) + answer)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == 26:  # INIT
            return struct.pack("<4I2H2I2H8I", 7, 31, 1 << 16, 0, 12, 10, 1 << 16, 1, 0, 0, *[0] * 8)
        path = self.nodes.get(node)
        if path is None:
            raise OSError(errno.ESTALE, "no such node")
        if opcode == 1:  # LOOKUP
            place = os.path.join(path, os.fsdecode(body.rstrip(b"\0")))
            info = os.lstat(place)
            number = self.numbers.setdefault(place, len(self.numbers) + 1)
            self.nodes[number] = place
            return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + attributes(info)
        if opcode == 3:  # GETATTR
            return struct.pack("<Q2I", 0, 0, 0) + attributes(os.lstat(path))
        if opcode in (14, 27):  # OPEN, OPENDIR
            return struct.pack("<Q2I", 0, 1 if opcode == 14 else 0, 0)
        if opcode == 15:  # READ
            _, offset, size = struct.unpack_from("<QQI", body)
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        if opcode == 28:  # READDIR
            _, offset, size = struct.unpack_from("<QQI", body)
            found = b""
            for index, name in enumerate([b".", b"..", *sorted(os.listdir(os.fsencode(path)))]):
                entry = struct.pack("<QQII", index + 1, index + 1, len(name), 0) + name
                entry += b"\0" * (-len(entry) % 8)
                if index >= offset and len(found) + len(entry) <= size:
                    found += entry
            return found
        if opcode == 17:  # STATFS
            return struct.pack("<5Q10I", 1000, 1000, 1000, 1000, 1000, 4096, 255, 4096, 0, *[0] * 6)
        if opcode in (18, 25, 29):  # RELEASE, FLUSH, RELEASEDIR
            return b""
        raise OSError(errno.ENOSYS, "not served")


def attributes(info: os.stat_result) -> bytes:
    times = [time_ns // 10**9 for time_ns in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)]
    rests = [time_ns % 10**9 for time_ns in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)]
    kind = info.st_mode if stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode) else stat.S_IFREG
    return ATTR.pack(
        info.st_ino, info.st_size, info.st_blocks, *times, *rests, kind, info.st_nlink, info.st_uid, info.st_gid, 0, 4096, 0
    )


def main() -> None:
    backing, place, control = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"test", os.fsencode(place), b"fuse.test", 6, options.encode()):
        raise SystemExit(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    Served(device, backing, control).run()


class Shown:
    """A mounted one. ``control`` takes what shall happen."""

    def __init__(self, place: Path, backing: Path, control: Path) -> None:
        self.place, self.backing, self._control = place, backing, control

    def control(self, mode: str) -> None:
        part = self._control.with_suffix(".new")
        part.write_text(mode)
        part.replace(self._control)


@contextlib.contextmanager
def shown(tmp_path: Path) -> Iterator[Shown]:
    """Mount one; the test is skipped, saying why, where that cannot be."""
    import pytest

    backing, place, control = tmp_path / "backing", tmp_path / "fuse", tmp_path / "control"
    backing.mkdir()
    place.mkdir()
    control.write_text("ok")
    server = subprocess.Popen(
        [sys.executable, __file__, str(backing), str(place), str(control)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    if server.stdout.readline() != "mounted\n":
        pytest.skip(f"no FUSE: {server.communicate()[1].strip()[-200:]}")
    try:
        yield Shown(place, backing, control)
    finally:
        control.write_text("ok")
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        server.kill()
        server.communicate()


if __name__ == "__main__":
    main()
