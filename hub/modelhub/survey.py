"""From a format's claim to a `Found`: run its reader, check every record it yields, sum the table up.

A reader is plugin code on untrusted bytes: what it yields is checked here as if it were input (known dtypes, sane shapes, values
inside their files, unique names), in one pass that is cheap enough for a hundred tensors in a tenth of a millisecond. This module
decides no claims (`modelhub.detect` does) and judges nothing that takes reading the weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from math import prod
from operator import add, mul, sub
from typing import Any

import orjson

from modelhub import dtypes, ops
from modelhub.errors import FileProblem, InvalidFile, PluginError
from modelhub.files import Checkpoint, File
from modelhub.found import Claim, Found
from modelhub.table import Table, pack, precision_label
from modelhub.types import Columns, Extent, Finding, Format, Metadata, Node, Tensor

MAX_RECORDS = 20_000_000
MAX_ELEMENTS = 1 << 62
MAX_DIMENSIONS = 64
MAX_METADATA = 4 << 20
"""Bytes of JSON that ``Metadata.values`` may take: it is what people see, not a place for vocabularies."""


@dataclass(slots=True)
class Draft:
    """A checkpoint that one format claims, before it is read."""

    format: Format
    path: str
    files: tuple[str, ...]
    sizes: Mapping[str, int]
    """Sizes of the files, by absolute path."""
    claims: tuple[Claim, ...] = ()
    name: str = ""
    missing: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    opened: Mapping[str, File] = field(default_factory=dict)
    """Files whose head has been read already."""
    modified_ns: int | None = None


def draft_name(path: str, is_directory: bool) -> str:
    """What people call a checkpoint that does not say: a directory's name, a file's stem."""
    base = os.path.basename(path.rstrip("/"))
    return base if is_directory else os.path.splitext(base)[0] or base


def failure(format_name: str, error: BaseException) -> tuple[str, str]:
    """(state, reason) for what a plugin raised."""
    if isinstance(error, FileProblem):
        return error.state, str(error)
    if isinstance(error, MemoryError):
        return "invalid", f"reading it takes more memory than is allowed, says the plugin of {format_name}"
    from modelhub.plugins import describe

    return "invalid", f"the plugin of {format_name} failed: {describe(error)}"


def rejected(draft: Draft, state: str, reason: str) -> Found:
    """A checkpoint that is known, and not readable for ``reason``."""
    checkpoint = _checkpoint(draft)
    try:
        return _found(draft, checkpoint, state=state, reason=reason, findings=tuple(draft.findings))
    finally:
        checkpoint.close()


def survey(draft: Draft) -> Found:
    """Read the checkpoint's table and say what it is. A broken file or plugin is a state and a finding; OSError, where the file
    system fails, says nothing about the file."""
    checkpoint = _checkpoint(draft)
    findings = draft.findings
    state = reason = ""
    try:
        if draft.format.read is None:
            need = draft.format.unavailable.get("read", "its plugin cannot read it")
            state, reason = "unsupported", f"{draft.format.title} is known but cannot be read: {need}"
        else:
            try:
                records, metadata = _collect(draft.format.read(checkpoint), findings)
                summary, blob = _summed_up(records, draft)
                _check_metadata(metadata)
                return _finish(draft, checkpoint, metadata, summary, blob)
            except FileProblem as error:
                state, reason = error.state, str(error)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever plugin code raises is this file's trouble only
                state, reason = failure(draft.format.name, error)
                findings.append(Finding("plugin", "error", reason, file=os.path.basename(draft.path)))
        return _found(draft, checkpoint, state=state, reason=reason, findings=tuple(findings))
    finally:
        checkpoint.close()


def _summed_up(records: Sequence[Tensor] | Columns, draft: Draft) -> tuple[Summary, bytes]:
    """The sums over the records, checked, and the packed table."""
    global _last
    if not isinstance(records, Columns):
        # Tensors that are stored only (an optimizer's state) are none of the model's, and stand in the table all the same.
        return check_tensors(records, draft.sizes), pack(records, draft.files) if records else b""
    if draft.files == (records.file,) and _last and _last.fits(records, draft.sizes[records.file]):
        return _last.summary, _last.blob
    summary = _columns_summary(records, draft.sizes)
    if summary is None:
        if records.explain:
            records.explain()
        tensors = records.tensors()
        return check_tensors(tensors, draft.sizes), pack(tensors, draft.files) if tensors else b""
    blob = pack(records, draft.files, summary.gaps) if summary.tensors else b""
    if summary.tensors and draft.files == (records.file,):
        _last = _Last(records, summary, blob)
    return summary, blob


@dataclass(frozen=True, slots=True)
class _Last:
    """The table before. A reader that yields the very same columns again (it knows the header already) need not have them
    checked again."""

    columns: Columns
    summary: Summary
    blob: bytes

    def fits(self, columns: Columns, size: int) -> bool:
        mine = self.columns
        same = all(a is b and type(a) is tuple for a, b in zip(mine[1:6], columns[1:6], strict=True))
        return same and mine.offsets[-1] + mine.nbytes[-1] <= size


_last: _Last | None = None


def _checkpoint(draft: Draft) -> Checkpoint:
    checkpoint = Checkpoint(draft.path, draft.files, name=draft.name, missing=draft.missing)
    for file in draft.opened.values():
        checkpoint.adopt(file)
    return checkpoint


def _collect(records: Iterable[Any], findings: list[Finding]) -> tuple[Sequence[Tensor] | Columns, Metadata]:
    """(tensors, metadata); findings are added to ``findings``. A lone `Columns` stays what it is."""
    everything: list[Any] = []
    try:
        everything.extend(islice(records, MAX_RECORDS + 1))
    except Exception:  # what was found before the reader gave up is worth as much as why it did
        findings += [record for record in everything if isinstance(record, Finding)]
        raise
    if len(everything) > MAX_RECORDS:
        raise InvalidFile(f"more than {MAX_RECORDS} tensors: nothing honest has so many")
    metadata = Metadata()
    if {*map(type, everything)} == {Tensor}:
        return everything, metadata
    of_tensors: list[Any] = []
    for record in everything:
        if isinstance(record, Metadata):
            metadata = record
        elif isinstance(record, Finding):
            findings.append(record)
        elif isinstance(record, Tensor | Columns):
            of_tensors.append(record)
        else:
            raise PluginError(f"read() yielded a {type(record).__name__}, expected Tensor, Columns, Metadata or Finding")
    if len(of_tensors) == 1 and isinstance(of_tensors[0], Columns):
        return of_tensors[0], metadata
    tensors: list[Tensor] = []
    for record in of_tensors:
        tensors += record.tensors() if isinstance(record, Columns) else (record,)
    return tensors, metadata


def _check_metadata(metadata: Metadata) -> None:
    if metadata.values:
        try:
            size = len(orjson.dumps(metadata.values))
        except TypeError as error:
            raise PluginError(f"Metadata.values is not plain JSON data: {error}") from error
        if size > MAX_METADATA:
            raise PluginError(f"Metadata.values takes {size} bytes, at most {MAX_METADATA} are kept")
    for key, value in metadata.stored.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise PluginError(f"Metadata.stored maps texts to texts; {key!r} is mapped to a {type(value).__name__}")


def _finish(draft: Draft, checkpoint: Checkpoint, metadata: Metadata, summary: Summary, blob: bytes) -> Found:
    state = reason = ""
    if draft.missing:
        more = f" and {len(draft.missing) - 3} more" if len(draft.missing) > 3 else ""
        state, reason = "incomplete", f"missing: {', '.join(draft.missing[:3])}{more}"
    elif summary.short:
        state, reason = "incomplete", summary.short
    architecture = metadata.values.get("architecture", "")
    return _found(
        draft,
        checkpoint,
        state=state or "ready",
        reason=reason,
        container=metadata.container,
        architecture=architecture if isinstance(architecture, str) else "",
        precision=metadata.precision or precision_label(summary.dtypes),
        parameters=summary.parameters,
        dtypes=summary.dtypes,
        tensors=summary.tensors,
        metadata=dict(metadata.values),
        stored=dict(metadata.stored),
        findings=tuple(draft.findings),
        table=blob,
    )


def _found(draft: Draft, checkpoint: Checkpoint, **fields: Any) -> Found:
    digest = hashlib.sha256()
    modified = draft.modified_ns or 0
    problem = ""
    for path in draft.files:
        try:
            if draft.modified_ns is None:
                modified = max(modified, os.stat(path).st_mtime_ns)
            file = checkpoint.open(path)
            digest.update(b"%d:" % file.size)
            digest.update(file.head)
            digest.update(file.tail)
        except FileProblem as error:
            problem = str(error)
    if problem and not fields.get("reason"):
        fields.update(state="incomplete", reason=problem)
    return Found(
        path=draft.path,
        name=checkpoint.name,
        format=draft.format.name,
        files=draft.files,
        size=sum(map(draft.sizes.__getitem__, draft.files)),
        modified_ns=modified,
        missing=draft.missing,
        claims=draft.claims,
        header_digest=digest.digest(),
        **fields,
    )


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Summary:
    """Sums over a table. ``short`` says which tensor the file ends before, "" where none. ``gaps``, where every extent is as
    long as its dtype and shape ask: the bytes between each and the one before."""

    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    short: str = ""
    gaps: Sequence[int] = ()


def check_tensors(tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Summary:
    """Check every record, and sum up. `InvalidFile` or `PluginError` says which tensor is not sane, and why."""
    # (dtype, shape) -> (elements, bytes): a model has few of them, and each is checked once.
    known: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
    counts: dict[str, int] = {}
    short = ""
    plain = True  # only bare extents, in file order: no two can be the same bytes
    last_file, size, end = "", 0, 0
    _check_shapes(tensors)
    for tensor in tensors:
        name, dtype, shape, value, view, _ = tensor
        try:
            elements, nbytes = known[dtype, shape]
        except KeyError:
            elements, nbytes = _check_kind(tensor)
            if value is not None:
                known[dtype, shape] = elements, nbytes
        if type(value) is Extent and view == "both":
            file, offset, length = value
            if file != last_file:
                if file not in sizes:
                    raise PluginError(f"tensor {name!r} lies in {file}, which is not one of the checkpoint's files")
                plain = plain and not last_file
                last_file, size, end = file, sizes[file], 0
            stop = offset + length
            if length != nbytes or offset < 0:
                raise _wrong_extent(tensor, nbytes)
            if stop > size:
                short = short or _too_short(tensor, value, size)
            if offset < end and length:
                plain = False
            end = stop
            counts[dtype] = counts.get(dtype, 0) + elements
        else:
            plain = False
            short = short or _check_value(tensor, nbytes, sizes)
    if len({tensor[0] for tensor in tensors}) != len(tensors):
        _check_names(tensors)
    if plain:
        counts = dict(sorted(counts.items(), key=lambda item: -item[1])) if len(counts) > 1 else counts
        return Summary(sum(counts.values()), counts, len(tensors), short)
    table = Table(tuple(tensors))
    return Summary(table.parameters, table.dtypes, len(table.logical), short)


def _columns_summary(columns: Columns, sizes: Mapping[str, int]) -> Summary | None:
    """The sums over extents in the order of their file, none shared, which nearly every table is. None where it is another, or
    where anything is wrong: `check_tensors` then says what. Column by column, so that each step is one call into C."""
    where, names, kinds, shapes, offsets, nbytes, _ = columns
    if not names:
        return Summary()
    if len({*map(len, columns[1:6])}) != 1 or where not in sizes or len({*names}) != len(names):
        return None
    counts = dict.fromkeys(kinds, 0)
    units = [dtypes.find(kind) for kind in counts]
    sides = list(chain.from_iterable(shapes))
    try:
        "".join(names)
        # A sum is an int only where every number is one.
        whole = type(sum(offsets)) is type(sum(nbytes)) is type(sum(sides)) is int
    except TypeError:
        return None
    if not whole or not {*map(type, shapes)} <= {list, tuple} or max(map(len, shapes)) > MAX_DIMENSIONS:
        return None
    if min(sides, default=0) < 0 or max(sides, default=0) > MAX_ELEMENTS:
        return None
    elements = list(map(prod, shapes))
    total = sum(elements)
    unit_bytes = {unit.name: unit.block_bytes for unit in units if unit and unit.block == 1}
    if len(unit_bytes) != len(units) or 0 in elements or total > MAX_ELEMENTS:
        return None
    bytes_each = map(unit_bytes.__getitem__, kinds) if len(units) > 1 else repeat(unit_bytes[kinds[0]])
    if list(map(mul, elements, bytes_each)) != list(nbytes):
        return None
    ends = list(map(add, offsets, nbytes))
    gaps = list(map(sub, offsets, chain((0,), ends)))
    if ends[-1] > sizes[where] or min(gaps) < 0:
        return None
    if len(counts) == 1:
        counts[kinds[0]] = total
    else:
        for kind, count in zip(kinds, elements, strict=True):
            counts[kind] += count
        counts = dict(sorted(counts.items(), key=lambda item: -item[1]))
    return Summary(total, counts, len(names), gaps=gaps)


def _check_shapes(tensors: Sequence[Tensor]) -> None:
    """Texts as names, tuples of whole numbers as shapes: by type, because 2.0 and True are equal to 2 and 1."""
    names, _, shapes, *_ = zip(*tensors, strict=True) if tensors else ((), (), ())
    if (
        set(map(type, names)) <= {str}
        and set(map(type, shapes)) <= {tuple}
        and set(map(type, chain.from_iterable(shapes))) <= {int}
    ):
        return
    for name, _, shape, *_ in tensors:
        if type(name) is not str:
            raise PluginError(f"a tensor's name is a {type(name).__name__}, expected a text")
        if type(shape) is not tuple or any(type(side) is not int for side in shape):
            raise PluginError(f"tensor {name!r}: its shape is {shape!r}, expected a tuple of whole numbers")


def _check_kind(tensor: Tensor) -> tuple[int, int]:
    """Elements and bytes of the tensor, by its dtype and shape, checked."""
    name, dtype, shape, value, _, unsupported = tensor
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or max(shape, default=0) > MAX_ELEMENTS:
        raise InvalidFile(f"tensor {name!r}: its shape {list(shape)[:8]} makes no sense")
    elements = prod(shape)
    if elements > MAX_ELEMENTS or prod(side for side in shape if side) > MAX_ELEMENTS:
        raise InvalidFile(f"tensor {name!r}: its shape {list(shape)} has more elements than can be counted")
    known = dtypes.find(dtype)
    if known is None:
        if value is None and unsupported:
            return elements, 0
        raise PluginError(f"tensor {name!r}: the dtype {dtype!r} is not registered")
    try:
        return elements, known.nbytes(shape)
    except ValueError as error:
        raise InvalidFile(f"tensor {name!r}: {error}") from error


def _check_value(tensor: Tensor, nbytes: int, sizes: Mapping[str, int]) -> str:
    """A value that is no bare extent, or stands in one table only. Returns what the file is too short for."""
    name, _, _, value, view, unsupported = tensor
    if view not in ("both", "stored", "logical"):
        raise PluginError(f"tensor {name!r}: view is {view!r}, expected both, stored or logical")
    if value is None:
        if not unsupported:
            raise PluginError(f"tensor {name!r} has neither a value nor a word on why it cannot be had (unsupported)")
        return ""
    kind, sides = ops.spec(value)
    got = value.nbytes if isinstance(value, Extent) else dtypes.get(kind).nbytes(sides)
    if got != nbytes:
        raise _wrong_extent(tensor, nbytes) if isinstance(value, Extent) else _wrong_value(tensor, nbytes, got, value)
    for extent in ops.extents(value):
        if extent.file not in sizes:
            raise PluginError(f"tensor {name!r} lies in {extent.file}, which is not one of the checkpoint's files")
        if extent.offset < 0 or extent.nbytes < 0:
            raise _wrong_extent(tensor, nbytes)
        if extent.offset + extent.nbytes > sizes[extent.file]:
            return _too_short(tensor, extent, sizes[extent.file])
    return ""


def _wrong_value(tensor: Tensor, expected: int, got: int, value: Any) -> Exception:
    what = f"op {value.op}" if isinstance(value, Node) else "inline value"
    return InvalidFile(
        f"tensor {tensor.name!r}: {tensor.dtype} {list(tensor.shape)} takes {expected} bytes, its {what} gives {got}"
    )


def _wrong_extent(tensor: Tensor, expected: int) -> Exception:
    value = tensor.value
    if not isinstance(value, Extent):
        return InvalidFile(f"tensor {tensor.name!r}: an extent that makes no sense")
    if value.offset < 0 or value.nbytes < 0:
        return InvalidFile(f"tensor {tensor.name!r}: {value.nbytes} bytes at offset {value.offset} make no sense")
    taken = f"{tensor.dtype} {list(tensor.shape)} takes {expected} bytes"
    return InvalidFile(f"tensor {tensor.name!r}: {taken}, {value.nbytes} are declared at offset {value.offset}")


def _too_short(tensor: Tensor, extent: Extent, size: int) -> str:
    where = f"bytes {extent.offset} to {extent.offset + extent.nbytes} of {os.path.basename(extent.file)}"
    return f"tensor {tensor.name!r} takes {where}, which ends at {size}"


def _check_names(tensors: Sequence[Tensor]) -> None:
    """A name may stand once in the stored table and once in the logical one."""
    for skipped in ("logical", "stored"):
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.view == skipped:
                continue
            if tensor.name in seen:
                raise InvalidFile(f"two tensors are called {tensor.name!r}")
            seen.add(tensor.name)
