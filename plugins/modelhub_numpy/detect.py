"""Which of NumPy's files are models.

Arrays are weights or data, and nothing in the files says which. An archive is taken for a model where it looks like one: a
matrix of floats, or an array that is called like a weight, and not the names of a data set; a single `.npy` where it is a matrix
of floats and no more than `NEIGHBOURS` of its kind stand beside it, for data sets come by the thousand. The rest are files of no
known format. A file that was asked for by its name is shown whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from modelhub import Detection, File, InvalidFile, Rejected, UnsupportedFile, zip_members

from modelhub_numpy.header import MAGIC, PEEK, Header, parse

NEIGHBOURS = 32
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_LOOKED = 64
"""Arrays of an archive that are looked at."""
_DATA = re.compile(
    r"(x|y|data|targets?|labels?|images?|inputs?|outputs?|features?|samples?|train|test|val(id(ation)?)?|idx|ind(ex|ices)|time(s|stamps)?)"
    r"(_?(\d+|x|y|train(ing)?|test(ing)?|val(id(ation)?)?|dev|data|labels?|images?|targets?|features?))?",
    re.IGNORECASE,
)
"""How the arrays of a data set are called."""
_WEIGHT = re.compile(
    r"(.*[/._])?(weights?|kernel|bias|gamma|beta|scale|embeddings?|coefs?_?|intercepts?_?)(_\d+)?", re.IGNORECASE
)
"""How a model's are."""


def detect_npz(file: File) -> Detection | Rejected | None:
    """An `.npz` whose arrays look like weights."""
    if not file.head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Rejected(f"an .npz archive is a zip, this starts with {file.head[:4]!r}", confidence=60)
    return Detection([file.path], confidence=90) if file.asked or _has_weights(file) else None


def _has_weights(file: File) -> bool:
    arrays = dict(islice(_arrays(file), MAX_LOOKED))
    if any(header.dtype in FLOATS and _WEIGHT.fullmatch(name) for name, header in arrays.items()):
        return True
    if all(_DATA.fullmatch(name) for name in arrays):
        return False
    if len(arrays) < 4 and _crowded(file, ".npz"):
        return False
    return any(header.dtype in FLOATS and len(header.shape) > 1 for header in arrays.values())


def _arrays(file: File) -> Iterator[tuple[str, Header]]:
    """The arrays of an archive, by their names; those with headers that are none, or very long ones, are for the reader."""
    for member in zip_members(file, fold_case=False):
        if member.name.endswith(".npy"):
            try:
                yield member.name.removesuffix(".npy"), parse(member.peek(file, PEEK), member.name)
            except (InvalidFile, UnsupportedFile):
                continue


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
    if not file.asked and (header.dtype not in FLOATS or len(header.shape) < 2 or _crowded(file, ".npy")):
        return None
    return Detection([file.path], confidence=90)


def _crowded(file: File, suffix: str) -> bool:
    return sum(name.endswith(suffix) for name in file.siblings or ()) > NEIGHBOURS
