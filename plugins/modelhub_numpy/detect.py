"""Which of NumPy's files are models.

An archive of arrays is taken for one. A single `.npy` is one where it looks like weights: floats in two dimensions or more, and
no more than `NEIGHBOURS` of its kind beside it, for data sets come by the thousand. The rest are files of no known format.
"""

from __future__ import annotations

from modelhub import Detection, File, InvalidFile, Rejected, UnsupportedFile

from modelhub_numpy.header import MAGIC, parse

NEIGHBOURS = 32


def detect_npz(file: File) -> Detection | Rejected | None:
    """An `.npz` that is a zip; whether arrays are in it is for the reader to say."""
    if file.head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Detection([file.path], confidence=90)
    return Rejected(f"an .npz archive is a zip, this starts with {file.head[:4]!r}", confidence=60)


def detect_npy(file: File) -> Detection | Rejected | None:
    """A matrix of floats that does not stand among many arrays."""
    if not file.head.startswith(MAGIC):
        return Rejected(f"an .npy array starts with {MAGIC!r}, this with {file.head[:6]!r}", confidence=60)
    try:
        header = parse(file.head, file.name)
    except UnsupportedFile as error:
        return Rejected(str(error), confidence=90, state="unsupported")
    except InvalidFile as error:
        return Rejected(str(error), confidence=90)
    if header.dtype not in ("F64", "F32", "F16", "BF16") or len(header.shape) < 2:
        return None
    if sum(name.endswith(".npy") for name in file.siblings or ()) > NEIGHBOURS:
        return None
    return Detection([file.path], confidence=90)
