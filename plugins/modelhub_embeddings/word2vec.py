"""word2vec's vectors: a line with their number and length, then each word and its vector, as float32 or as text.

(Google's ``word2vec.c`` ends a binary vector with a newline, gensim's ``keyedvectors.py`` does not; both read either.) Words are
of any length, so that a row's place is known when those before it are read: the matrix is one run, read in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from modelhub import Checkpoint, Detection, Extent, File, IncompleteFile, InvalidFile, Metadata, Tensor, ops

SUFFIXES = (".bin", ".vec", ".w2v", ".txt", ".vectors")
_HEADER = re.compile(rb"(\d{1,9}) (\d{1,5})\r?\n")
_WORD = re.compile(rb"[^\x00-\x20][^\x00\n ]{0,400} ")
_NUMBER = rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
MAX_WORD = 1 << 12


def detect(file: File) -> Detection | None:
    """The line, and a word with as many numbers as it says; in a binary file the next word stands where it must."""
    return Detection([file.path], confidence=75) if _kind(file) else None


def _kind(file: File) -> str:
    """binary, text, or "" for something else."""
    head = file.head
    header = _HEADER.match(head)
    if not header or not int(header[1]) or not int(header[2]):
        return ""
    count, dim, at = int(header[1]), int(header[2]), header.end()
    line = head[at : head.find(b"\n", at) if b"\n" in head[at:] else len(head)]
    whole = b"\n" in head[at:] or file.size <= len(head)
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
    return "binary" if file.size >= header.end() + count * (4 * dim + 2) or at < file.size else ""


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
    header, kind = _HEADER.match(file.head), _kind(file)
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
