"""Checks of PyTorch files beyond their structure: what their pickles name, and the checksums of their members."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from modelhub import Checkpoint, File, FileProblem, Finding, Table, ZipMember, zip_members

from modelhub_pytorch.allow import Report
from modelhub_pytorch.legacy import is_legacy
from modelhub_pytorch.reader import scan

GLOBALS = "pickle-globals"
CRC = "zip-crc"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".jit", ".ptl")
_STEP = 4 << 20


def pickle_globals(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Every global outside the allow-list that a pickle names, in any of the checkpoint's files. Nothing is unpickled."""
    for path in checkpoint.files:
        if path.lower().endswith(_SUFFIXES):
            file = checkpoint.open(path)
            if file.head.startswith((b"PK\x03\x04", b"\x80")) or is_legacy(file.head):
                report = Report(file.name)
                scan(file, report)
                yield from report.findings()


def zip_crc(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """The CRC of every member of a zip, read in pieces. A CRC of 0 says that the writer computed none."""
    for path in checkpoint.files:
        file = checkpoint.open(path)
        if not path.lower().endswith(_SUFFIXES) or not file.head.startswith(b"PK\x03\x04"):
            continue
        unchecked = 0
        try:
            for member in zip_members(file):
                if not member.crc and member.size:
                    unchecked += 1
                elif (found := _crc(file, member)) != member.crc:
                    message = f"member {member.name} is corrupt: its CRC is {found:08x}, the directory says {member.crc:08x}"
                    yield Finding(CRC, "error", message, file=file.name)
        except FileProblem as problem:
            yield Finding(CRC, "error", problem.message, file=file.name)
        if unchecked:
            yield Finding(
                CRC,
                "info",
                f"{unchecked} members were written without a CRC: there is nothing to hold them against",
                file=file.name,
            )


def _crc(file: File, member: ZipMember) -> int:
    """The CRC of a member's data, in pieces; -1 where they do not inflate to what the directory declares."""
    machine = zlib.decompressobj(-15) if member.deflated else None
    crc, size = 0, 0
    for offset in range(member.offset, member.offset + member.nbytes, _STEP):
        data = file.read(offset, min(_STEP, member.offset + member.nbytes - offset))
        while machine is not None and data:
            try:
                part = machine.decompress(data, _STEP)
            except zlib.error:
                return -1
            crc, size, data = zlib.crc32(part, crc), size + len(part), machine.unconsumed_tail
            if size > member.size:
                return -1
        if machine is None:
            crc, size = zlib.crc32(data, crc), size + len(data)
    return crc if size == member.size else -1
