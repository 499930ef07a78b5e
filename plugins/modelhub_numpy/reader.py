"""Reads the headers of NumPy's files; never their data."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Checkpoint, Extent, Finding, InvalidFile, Metadata, Node, Tensor, UnsupportedFile, ops, zip_members

from modelhub_numpy.header import MAX_HEADER, PEEK, length, parse, tensor

PICKLED = "pickled Python objects, which are never loaded here; numpy.load with allow_pickle=True runs whatever they say"


def read_npz(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """An array a member, by the member's name without `.npy`. Members that are no arrays are listed as findings."""
    file = checkpoint.primary
    others = []
    pickled: list[str] = []
    count = 0
    for member in zip_members(file, fold_case=False):
        if not member.name.endswith(".npy"):
            others.append(member.name)
            continue
        what = f"member {member.name!r:.200}"
        head = member.peek(file, PEEK)
        if length(head, what) > len(head) and length(head, what) <= min(MAX_HEADER, member.size):
            head = member.peek(file, length(head, what))
        header = parse(head, what)
        nbytes = member.size - header.start
        if member.deflated:
            place: Extent | Node = ops.inflate(member.extent, skip=header.start, nbytes=nbytes)
        else:
            place = Extent(member.file, member.offset + header.start, nbytes)
        count += 1
        if header.is_pickled:
            pickled.append(member.name.removesuffix(".npy"))
        yield tensor(member.name.removesuffix(".npy"), header, place, nbytes, what)
    if pickled and len(pickled) == count:
        raise UnsupportedFile(f"{file.name} holds nothing but {PICKLED}")
    if pickled:
        more = f" and {len(pickled) - 3} more" if len(pickled) > 3 else ""
        yield Finding("npz", "warning", f"{', '.join(pickled[:3])!s:.200}{more}: {PICKLED}", file=file.path)
    if others:
        yield Finding("npz", "info", f"{len(others)} members are no arrays: {', '.join(others[:3])!r:.200}", file=file.path)
    yield Metadata()


def read_npy(checkpoint: Checkpoint) -> Iterator[Tensor]:
    """The one array, by the file's stem."""
    file = checkpoint.primary
    size = length(file.read(0, min(12, file.size)), file.name)
    if size > min(MAX_HEADER, file.size):
        raise InvalidFile(f"{file.name}: a header of {size} bytes; the file has {file.size}, and {MAX_HEADER} are read")
    header = parse(file.read(0, size), file.name)
    nbytes = file.size - header.start
    if header.is_pickled:
        raise UnsupportedFile(f"{file.name} holds nothing but {PICKLED}")
    yield tensor(file.stem, header, Extent(file.path, header.start, nbytes), nbytes, file.name)
