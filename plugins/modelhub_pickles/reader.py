"""Tells pickled objects, and says what they are made of.

joblib writes an array's bytes behind the opcodes of a ``NumpyArrayWrapper`` (``joblib/numpy_pickle.py``: a byte with the length
of what fills up to 16 bytes, that, the bytes; objects are another pickle), and compresses the whole by zlib, gzip, bz2 or xz.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

from modelhub import Checkpoint, Detection, File, FileProblem, Finding, InvalidFile, Metadata, Table, pickles

SUFFIXES = (".joblib", ".pkl", ".pickle", ".sav", ".kv", ".model", ".gz", ".z", ".bz2", ".xz")
_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LIBRARIES = re.compile(
    rb"(?:\b|c)(sklearn|joblib|gensim|xgboost|lightgbm|catboost|statsmodels|imblearn|pandas|spacy|nltk|hmmlearn|umap|hdbscan|scipy)\."
)
"""The libraries, as modules in an opcode: up to protocol 3 one begins with "c", and nothing is between."""
_TRUSTED = (
    "sklearn", "joblib", "numpy", "scipy", "pandas", "gensim", "xgboost", "lightgbm", "catboost", "statsmodels", "imblearn",
    "umap", "hdbscan", "hmmlearn",
)  # fmt: skip
_BUILTINS = (
    "set", "frozenset", "list", "dict", "tuple", "slice", "range", "complex", "bytearray", "object", "int", "float", "str",
    "bool", "bytes", "hash",
)  # fmt: skip
_PLAIN = {
    *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"), ("collections", "deque"),
    ("_codecs", "encode"), ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"), ("copyreg", "__newobj__"),
    ("datetime", "datetime"), ("datetime", "date"), ("datetime", "timedelta"), ("decimal", "Decimal"), ("uuid", "UUID"),
    ("functools", "partial"), ("pathlib", "PosixPath"),
}  # fmt: skip
_DANGEROUS = re.compile(
    r"(^|[._])(testing|externals|distutils|f2py|_pytesttester|run|exec|eval|system|popen|load|open|read_pickle)", re.IGNORECASE
)
_WRAPPERS = ("NumpyArrayWrapper", "NDArrayWrapper")
MAX_UNPACKED = 128 << 20
_STEP = 1 << 20
_SHOWN = 64


def detect(file: File) -> Detection | None:
    """A pickle, compressed or not, that names one of the libraries (a ``.joblib`` need not). PyTorch's are its plugin's."""
    name, head = file.name.lower(), file.head
    packed = name.endswith((".gz", ".z", ".bz2", ".xz"))
    if packed and ".joblib" not in name and ".pkl" not in name and ".pickle" not in name:
        return None
    if not head.startswith(_STARTS):
        try:
            head = _unpacked(file, 64 << 10)
        except FileProblem:
            return None
    if not head.startswith(_STARTS):
        return None
    if ".joblib" in name or (_LIBRARIES.search(head) and b"torch" not in head):
        return Detection([file.path], confidence=92 if ".joblib" in name else 60)
    return None


def read(checkpoint: Checkpoint) -> Iterator[Metadata | Finding]:
    file = checkpoint.primary
    found = _pickle(file)
    yield from _findings(found, file)
    names = [str(name) for name in found.names]
    libraries = Counter(name.module.partition(".")[0] for name in found.names)
    values: dict[str, Any] = {
        "object": _class(found.value),
        "imports": names[:_SHOWN],
        "libraries": [name for name, _ in libraries.most_common(16)],
    }
    state = found.value.state if isinstance(found.value, pickles.Call) else None
    version = state.get("_sklearn_version") if isinstance(state, dict) else None
    if isinstance(version, str):
        values["library_version"] = version[:40]
    if isinstance(state, dict):
        values["fields"] = {str(key)[:80]: _said(value) for key, value in list(state.items())[:_SHOWN] if isinstance(key, str)}
    yield Metadata(values=values, container="compressed pickle" if not file.head.startswith(_STARTS) else "pickle")


def unsafe_imports(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    try:
        yield from _findings(_pickle(checkpoint.primary), checkpoint.primary)
    except FileProblem:  # the reader says what is wrong
        return


def _findings(found: pickles.Pickle, file: File) -> Iterator[Finding]:
    """One of what all such files do, and an unsafe one for each global that is none of a known library's."""
    yield Finding("pickle-imports", "info", "loading it runs what it says: only from whom you trust", file=file.path)
    for name in found.names:
        library = name.module.partition(".")[0]
        innocent = tuple(name) in _PLAIN or (library in _TRUSTED and (name.name in _WRAPPERS or not _DANGEROUS.search(str(name))))
        if not innocent:
            yield Finding("pickle-imports", "unsafe", f"loading it imports {str(name)[:200]!r}, and may call it", file=file.path)


def _pickle(file: File) -> pickles.Pickle:
    source: File | bytes = file
    if not file.head.startswith(_STARTS):
        source = _unpacked(file, MAX_UNPACKED + 1)
        if len(source) > MAX_UNPACKED:
            raise InvalidFile(f"{file.name}: unpacks to more than the {MAX_UNPACKED >> 20} MiB that are read")
    return pickles.read(source, file.name, raw=lambda call, position: _behind(source, file.name, call, position))


def _behind(source: File | bytes, name: str, call: pickles.Call, position: int) -> int:
    """Where a pickle goes on behind an array of joblib's."""
    made, state = call.function, call.state
    if not (isinstance(made, pickles.Global) and made.name.endswith("ArrayWrapper") and made.module.startswith("joblib")):
        return position
    if not isinstance(state, dict) or "shape" not in state:
        return position
    shape, kind = state["shape"], state.get("dtype")
    descr = kind.args[0] if isinstance(kind, pickles.Call) and type(kind.args) is tuple and kind.args else ""
    told = re.fullmatch(r"[<>|=]?([a-zA-Z])(\d{1,9})", descr) if isinstance(descr, str) else None
    if not told or type(shape) is not tuple or not all(type(side) is int and 0 <= side < 1 << 48 for side in shape):
        raise InvalidFile(f"{name}: an array at byte {position} whose shape or dtype is none")
    if told[1] == "O":
        return pickles.read(source, name, start=position).end
    if state.get("numpy_array_alignment_bytes") is not None:
        byte = source[position : position + 1] if isinstance(source, bytes) else source.read(position, 1)
        position += 1 + (byte[0] if byte else 0)
    return position + prod(shape) * int(told[2]) * (4 if told[1] == "U" else 1)


def _unpacked(file: File, limit: int) -> bytes:
    """The first ``limit`` bytes of what is compressed; b"" where nothing known is."""
    head = file.head
    machine: Any
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
        machine = zlib.decompressobj()
    elif head.startswith(b"\x1f\x8b"):
        machine = zlib.decompressobj(31)
    elif head.startswith(b"BZh"):
        machine = bz2.BZ2Decompressor()
    elif head.startswith(b"\xfd7zXZ\x00"):
        machine = lzma.LZMADecompressor(memlimit=256 << 20)
    else:
        return b""
    parts, size, at = [], 0, 0
    try:
        while size < limit and not machine.eof:
            data = machine.unconsumed_tail if hasattr(machine, "unconsumed_tail") else b""
            if not data and (not hasattr(machine, "needs_input") or machine.needs_input):
                data = file.read(at, min(_STEP, file.size - at))
                at += len(data)
                if not data:
                    break
            part = machine.decompress(data, limit - size)
            parts.append(part)
            size += len(part)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise InvalidFile(f"{file.name}: its compressed data are broken: {error}") from error
    return b"".join(parts)


def _class(value: Any) -> str:
    """What the whole is, by its class."""
    for _ in range(8):
        if not isinstance(value, pickles.Call):
            break
        made = value.function
        if isinstance(made, pickles.Global):
            first = value.args[0] if type(value.args) is tuple and value.args else None
            if made.name in ("_reconstructor", "__newobj__") and isinstance(first, pickles.Global):
                return str(first)[:200]
            return str(made)[:200]
        value = made
    return str(value)[:200] if isinstance(value, pickles.Global) else type(value).__name__


def _said(value: Any) -> Any:
    """A field in a word or two."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, str):
        return value[:200]
    if isinstance(value, list | tuple | dict) and not isinstance(value, pickles.Global | pickles.Run):
        return f"{type(value).__name__} of {len(value)}"
    return _class(value)
