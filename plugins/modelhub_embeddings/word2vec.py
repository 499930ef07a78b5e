"""word2vec's vectors: a line with their number and length, then each word and its vector, as float32 or as text.

(Google's ``word2vec.c`` ends a binary vector with a newline, gensim's ``keyedvectors.py`` does not; both read either.) Words are
of any length, so that a row's place is known when those before it are read: the matrix is one run, read in order.

GloVe's text has no such line, and vectors are often published compressed: both are told, and not read.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from modelhub import Checkpoint, Detection, Extent, File, IncompleteFile, InvalidFile, Metadata, Rejected, Tensor, ops

from modelhub_embeddings import fasttext

SUFFIXES = (".bin", ".vec", ".w2v", ".txt", ".vectors", ".bin.gz", ".vec.gz", ".txt.gz")
_HEADER = re.compile(rb"(\d{1,9}) (\d{1,5})\r?\n")
_WORD = re.compile(rb"[^\x00-\x20][^\x00\n ]{0,400} ")
_NUMBER = rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
MAX_WORD = 1 << 12
UNPACKED = 1 << 16
"""How much of a compressed file is looked at."""
_GLOVE = 8
"""Lines of GloVe's that are held against each other."""


def detect(file: File) -> Detection | Rejected | None:
    """The line, and a word with as many numbers as it says; in a binary file the next word stands where it must."""
    if file.head.startswith(b"\x1f\x8b"):
        head = _unpacked(file.head)
        if not (head.startswith(fasttext.MAGIC) or _kind(head, 1 << 60) or _is_gloves(head)):
            return None
        return Rejected(f"{file.name} is compressed word vectors: gunzip unpacks them", confidence=75, state="unsupported")
    if _kind(file.head, file.size):
        return Detection([file.path], confidence=75)
    if file.name.lower().endswith((".txt", ".vec")) and _is_gloves(file.head):
        reason = "is vectors of words as GloVe writes them: how many says no line of it"
        advice = (
            "gensim's KeyedVectors.load_word2vec_format(..., no_header=True) opens them, and save_word2vec_format gives them one"
        )
        return Rejected(f"{file.name} {reason}; {advice}", confidence=60, state="unsupported")
    return None


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, UNPACKED)
    except zlib.error:
        return b""


def _is_gloves(head: bytes) -> bool:
    """Some lines of a word and equally many numbers with a fraction, at least as many as GloVe's smallest vectors."""
    lines = head.split(b"\n", _GLOVE)[:_GLOVE]
    if len(lines) < _GLOVE:
        return False
    rows = [line.rstrip().split(b" ") for line in lines]
    sides = {len(row) for row in rows}
    if len(sides) != 1 or not 26 <= (side := sides.pop()) <= 4097 or len({row[0] for row in rows}) < _GLOVE:
        return False
    numbers = all(re.fullmatch(_NUMBER, item) and b"." in item for row in rows for item in row[1 : min(side, 64)])
    return numbers and not all(re.fullmatch(_NUMBER, row[0]) for row in rows)


def _kind(head: bytes, size: int) -> str:
    """binary, text, or "" for something else; of a file's beginning and length."""
    header = _HEADER.match(head)
    if not header or not int(header[1]) or not int(header[2]):
        return ""
    count, dim, at = int(header[1]), int(header[2]), header.end()
    line = head[at : head.find(b"\n", at) if b"\n" in head[at:] else len(head)]
    whole = b"\n" in head[at:] or size <= len(head)
    numbers = line.split()[1:]
    enough = len(numbers) == dim if whole else len(numbers) > 8
    if enough and all(re.fullmatch(_NUMBER, item) for item in numbers[: min(dim, 64)]):
        return "text"
    if _is_text(head[at : at + 8 * dim + 400]):  # and no vectors as text
        return ""
    for _ in range(min(count, 3)):
        found = _WORD.match(head, at)
        if not found:
            return "binary" if at >= len(head) - 500 and at > header.end() else ""
        at = found.end() + 4 * dim
        at += head[at : at + 1] == b"\n"
    return "binary" if size >= header.end() + count * (4 * dim + 2) or at < size else ""


def _is_text(data: bytes) -> bool:
    """UTF-8 without control characters, but for a character that the end cuts off."""
    if any(byte < 9 for byte in data):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(data) - 3
    return True


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata]:
    file = checkpoint.primary
    header, kind = _HEADER.match(file.head), _kind(file.head, file.size)
    if not header or not kind:
        raise InvalidFile(f"{file.name}: begins with no number of vectors and their length")
    count, dim, start = int(header[1]), int(header[2]), header.end()
    least = 4 * dim + 2 if kind == "binary" else 2 * dim + 1
    if file.size - start < count * least - 1:
        raise IncompleteFile(
            f"{file.name}: {count} vectors of {dim} take {count * least} bytes at the least, {file.size - start} follow"
        )
    if kind == "binary" and file.size - start > count * (4 * dim + MAX_WORD + 2):
        raise InvalidFile(f"{file.name}: {file.size - start} bytes for {count} vectors of {dim} are too many")
    run = Extent(file.path, start, file.size - start)
    value = ops.node(f"word2vec.{kind}", run, shape=[count, dim])
    yield Tensor("vectors", "F32", (count, dim), value)
    yield Metadata(values={"architecture": "word2vec", "vocab_size": count, "embedding_length": dim}, container=kind)
