"""The directory at the end of a zip that has a program before it: located by its end record, of either size.

(PKWARE's APPNOTE 4.3.14 to 4.3.16.) Offsets count from the file's start, as in what zipalign writes.
"""

from __future__ import annotations

from modelhub import File

MAX_DIRECTORY = 4 << 20


def zip_directory(file: File) -> bytes:
    """The central directory; b"" where there is none, or it is absurd."""
    tail = file.tail
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        return b""
    nbytes, start = (int.from_bytes(tail[at + low : at + low + 4], "little") for low in (12, 16))
    if 0xFFFFFFFF in (nbytes, start) and tail[at - 20 : at - 16] == b"PK\x06\x07":
        record = int.from_bytes(tail[at - 12 : at - 4], "little")
        if record + 56 > file.size:
            return b""
        end = file.read(record, 56)
        if end[:4] != b"PK\x06\x06":
            return b""
        nbytes, start = (int.from_bytes(end[low : low + 8], "little") for low in (40, 48))
    if not 0 < nbytes <= MAX_DIRECTORY or start + nbytes > file.size:
        return b""
    found = file.read(start, nbytes)
    return found if found.startswith(b"PK\x01\x02") else b""
