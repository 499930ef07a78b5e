"""Validators of Keras files: whose code they need, and the checksums of an archive's members."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Table, ZipMember, zip_members

from modelhub_keras import config
from modelhub_keras.reader import ZIP, configuration

CUSTOM, CRC = "keras-custom", "keras-crc"
_SHOWN = 10
_STEP = 4 << 20


def custom(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """What needs somebody's code that is not in the file. (Code that is in it was reported when it was read.)"""
    file = checkpoint.primary
    found = configuration(file)
    if found is None or not found.custom:
        return
    names = ", ".join(f"{name[: config.KEPT]} ({where})" if where else name for name, where in [*found.custom.items()][:_SHOWN])
    more = f" and {len(found.custom) - _SHOWN} more" if len(found.custom) > _SHOWN else ""
    message = f"custom objects, whose code is not in the file and is needed to run it: {names[:600]}{more}"
    yield Finding(CUSTOM, "warning", message, file=file.name)


def crc(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """The CRC of every stored member of an archive, read in pieces."""
    file = checkpoint.primary
    if not file.head.startswith(ZIP):
        return
    for member in zip_members(file):
        if member.crc and not member.deflated and (found := _crc(checkpoint, member)) != member.crc:
            message = f"member {member.name[:200]} is corrupt: its CRC is {found:08x}, the directory says {member.crc:08x}"
            yield Finding(CRC, "error", message, file=file.name)


def _crc(checkpoint: Checkpoint, member: ZipMember) -> int:
    value, end = 0, member.offset + member.nbytes
    for offset in range(member.offset, end, _STEP):
        value = zlib.crc32(checkpoint.primary.read(offset, min(_STEP, end - offset)), value)
    return value
