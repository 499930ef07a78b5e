"""HDF5 files through h5py: their datasets, and where their bytes lie. Nothing here knows Keras.

h5py gets a window of the file to read from, never a path, so that the same code reads an HDF5 file inside of an archive; and
links are looked at before they are followed: what leads out of the file (external links, external storage, virtual datasets) is
told and never opened. The library is C and the file is not to be trusted, so this runs in workers alone, where a crash is a
finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from modelhub import Extent, File, FileProblem, IncompleteFile, InvalidFile, Node

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 1_000_000
MAX_DEPTH = 64
MAX_HOPS = 16
"""Soft links that are followed for one name."""
MAX_METADATA = 1 << 30
"""Bytes that the library may ask for: headers, never weights."""
MAX_TEXT = 256 << 20
Place = Callable[[int, int], "Extent | Node"]
"""(offset, nbytes) within the HDF5 file -> those bytes, wherever that file itself lies."""


class Dataset(NamedTuple):
    """A dataset that was found under ``path``, or something that leads out of the file (``outside`` says where to)."""

    path: str
    id: Any
    outside: str = ""


class Window:
    """Bytes of a file, as h5py reads them."""

    def __init__(self, source: File | bytes, base: int = 0, size: int | None = None) -> None:
        self._source, self._base, self._at = source, base, 0
        whole = len(source) if isinstance(source, bytes) else source.size
        self._size = whole - base if size is None else size
        self._left = MAX_METADATA
        self.problem: FileProblem | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, nbytes: int = -1) -> bytes:
        """That there is one is how h5py tells files from paths."""
        buffer = bytearray(self._size - self._at if nbytes < 0 else nbytes)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        self._left -= wanted
        try:
            if self._left < 0:
                raise InvalidFile(f"more than {MAX_METADATA >> 20} MiB of headers")
            start = self._base + self._at
            source = self._source
            data = source[start : start + wanted] if isinstance(source, bytes) else source.read(start, wanted)
        except FileProblem as problem:  # said once the library has come back: it has no place for it
            self.problem = self.problem or problem
            return 0
        buffer[:wanted] = data
        self._at += wanted
        return wanted


@contextmanager
def opened(window: Window, name: str) -> Iterator[Any]:
    """The h5py file in ``window``. What the library says of a broken one is an `InvalidFile`, or an `IncompleteFile`."""
    import h5py  # type: ignore[import-untyped]

    try:
        # A file that is not closed crashes the interpreter when it ends.
        with h5py.File(window, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if window.problem:
            raise window.problem from error
        if not _is_librarys(error):
            raise
        said = " ".join(str(error).split())[:300]
        kind = IncompleteFile if "truncated file" in said else InvalidFile
        raise kind(f"{name}: HDF5's library cannot read it: {said or type(error).__name__}") from error


def _is_librarys(error: BaseException) -> bool:
    """Whether an exception was raised in h5py, and not by a mistake of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in trace.tb_frame.f_code.co_filename


def walk(file: Any, name: str) -> Iterator[Dataset]:
    """Every dataset, group by group in the order of their names. A group that contains itself is gone through once; a soft link
    to a dataset is told as that dataset, one to a group is not followed: what is there is found in its own place."""
    from h5py import h5d, h5g

    # Addresses are those in links: to ask an object for everything about it has the library go through all that is in it.
    seen = {_root_address(file)}
    left = MAX_OBJECTS
    stack: list[tuple[Any, str, int]] = [(file["/"].id, "", 0)]
    while stack:
        group, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InvalidFile(f"{name}: groups nest deeper than {MAX_DEPTH}: {path[:200]!r}")
        inner = []
        for member in sorted(group, key=_natural):
            left -= 1
            if left < 0:
                raise InvalidFile(f"{name}: more than {MAX_OBJECTS} objects")
            full = path + ("/" if path else "") + member.decode("utf-8", "surrogateescape")
            target, outside = _member(file, group, member)
            if outside:
                yield Dataset(full, None, outside)
            elif isinstance(target, h5d.DatasetID):
                yield Dataset(full, target)
            elif isinstance(target, h5g.GroupID) and (address := _hard(group, member)) is not None and address not in seen:
                seen.add(address)
                inner.append((target, full, depth + 1))
        stack.extend(reversed(inner))


def _natural(name: bytes) -> tuple[int, int, bytes]:
    """Numbers by their size, before all others."""
    return (0, int(name), name) if name.isdigit() and len(name) < 10 else (1, 0, name)


def _root_address(file: Any) -> int:
    """The one that no link has, but for a group that contains it."""
    from h5py import h5g

    low, high = h5g.get_objinfo(file["/"].id, b".").objno
    return int(low) | int(high) << 32


def _hard(group: Any, member: bytes) -> int | None:
    """The address of what a hard link leads to; None for any other link."""
    from h5py import h5l

    info = group.links.get_info(member)
    return int(info.u) if info.type == h5l.TYPE_HARD else None


def _member(file: Any, group: Any, member: bytes) -> tuple[Any, str]:
    """(the object under a name, where a link leads that leaves the file); (None, "") for one that leads nowhere."""
    from h5py import h5g, h5l, h5o

    hops, parts = 0, [member]
    while parts:
        part = parts.pop(0)
        if part in (b"", b"."):
            continue
        if not isinstance(group, h5g.GroupID) or not group.links.exists(part):  # `in` would follow links by itself
            return None, ""
        kind = group.links.get_info(part).type
        if kind == h5l.TYPE_HARD:
            group = h5o.open(group, part)
            continue
        if kind != h5l.TYPE_SOFT:
            value = group.links.get_val(part)
            where = b" ".join(value) if isinstance(value, tuple) else b"a link of an unknown kind"
            return None, "link to another file, " + where.decode("utf-8", "replace")[:300]
        hops += 1
        if hops > MAX_HOPS:
            return None, ""
        target = group.links.get_val(part)
        if target.startswith(b"/"):
            group = file["/"].id
        parts = target.split(b"/") + parts
        if len(parts) > 1000:
            return None, ""
    return group, ""


def group_at(file: Any, path: str) -> Any:
    """The group at a path below ``file``, or None; no link that could lead elsewhere is followed on the way."""
    import h5py

    at = file
    for part in path.split("/"):
        if not part or not isinstance(at, h5py.Group) or not isinstance(at.get(part, getlink=True), h5py.HardLink):
            return None
        at = at[part]
    return at if isinstance(at, h5py.Group) else None


def attribute(group: Any, name: str) -> Any:
    """An attribute of a group or dataset: text, a list of texts, or None where there is none of these kinds. Keras splits long
    lists into NAME0, NAME1, ... (``saving/legacy/legacy_h5_format.py``, ``save_attributes_to_hdf5_group``)."""
    if name in group.attrs:
        return _text(group.attrs, name)
    whole: list[str] = []
    for number in range(MAX_OBJECTS):
        if f"{name}{number}" not in group.attrs:
            break
        part = _text(group.attrs, f"{name}{number}")
        if not isinstance(part, list):
            return None
        whole += part
    return whole or None


def _text(attributes: Any, name: str) -> Any:
    import numpy as np

    identifier = attributes.get_id(name)
    if identifier.get_space().get_simple_extent_npoints() * identifier.get_type().get_size() > MAX_TEXT:
        return None
    value = attributes[name]
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or (value.size and value.dtype.kind not in "SO"):
            return None
        return [one if isinstance(one, str) else bytes(one).decode("utf-8", "replace") for one in value.tolist()]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def placed(file: File, base: int) -> Place:
    """Places of an HDF5 file that begins at ``base`` of ``file``."""

    def place(offset: int, nbytes: int) -> Extent | Node:
        if base + offset + nbytes > file.size:
            raise IncompleteFile(f"{file.name}: {nbytes} bytes at offset {base + offset} expected, the file ends at {file.size}")
        return Extent(file.path, base + offset, nbytes)

    return place
