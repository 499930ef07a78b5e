"""From a format's claim to a `Found`: run its reader, and take in what it yields.

A reader is plugin code on untrusted bytes: whatever it raises is a state and a finding of that one checkpoint. This module
decides no claims (`modelhub.detect` does), checks no tensors (`modelhub.summary` does), and judges nothing that takes reading
the weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson

from modelhub.declared import Format
from modelhub.errors import FileProblem, InvalidFile, PluginError
from modelhub.files import Checkpoint, File
from modelhub.found import Claim, Found
from modelhub.model import clean
from modelhub.summary import Summary, check_tensors, columns_summary
from modelhub.table import pack, precision_label
from modelhub.types import Columns, Finding, Metadata, Tensor

MAX_RECORDS = 20_000_000
MANY_FILES = 256
MAX_METADATA = 4 << 20
"""Bytes of JSON that ``Metadata.values`` may take: it is what people see, not a place for vocabularies."""
MAX_REASON = 2000
"""Characters that are kept of why a checkpoint cannot be read."""
MAX_NESTING = 100
"""Of lists and objects in it."""


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
                metadata = _checked(metadata)
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
    if not isinstance(records, Columns):
        # Tensors that are stored only (an optimizer's state) are none of the model's, and stand in the table all the same.
        return check_tensors(records, draft.sizes), pack(records, draft.files) if records else b""
    alone = draft.files == (records.file,)
    for known in _lately if alone else ():
        if known.fits(records, draft.sizes[records.file]):
            return known.summary, known.blob
    summary = columns_summary(records, draft.sizes)
    if summary is None:
        if records.explain:
            records.explain()
        tensors = records.tensors()
        return check_tensors(tensors, draft.sizes), pack(tensors, draft.files) if tensors else b""
    blob = pack(records, draft.files, summary.gaps) if summary.tensors else b""
    if summary.tensors and alone and type(records.names) is tuple:  # lists may be others the next time
        del _lately[LATELY - 1 :]
        _lately.insert(0, _Checked(records._replace(explain=None), summary, blob))
    return summary, blob


@dataclass(frozen=True, slots=True)
class _Checked:
    """A table that was checked. A reader that yields the very same columns again (it knows the header already) need not have
    them checked again."""

    columns: Columns
    summary: Summary
    blob: bytes

    def fits(self, columns: Columns, size: int) -> bool:
        mine = self.columns
        same = mine.names is columns.names and all(
            a is b and type(a) is tuple for a, b in zip(mine[1:6], columns[1:6], strict=True)
        )
        return same and mine.offsets[-1] + mine.nbytes[-1] <= size


LATELY = 8
_lately: list[_Checked] = []


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


def _checked(metadata: Metadata) -> Metadata:
    """The metadata as they can be kept: JSON, in text that can be encoded and numbers of 64 bits."""
    if metadata.values:
        try:
            size = len(orjson.dumps(metadata.values))
        except TypeError:
            metadata = replace(metadata, values=_plain(metadata.values))
            try:
                size = len(orjson.dumps(metadata.values))
            except TypeError as error:
                raise PluginError(f"Metadata.values is not plain JSON data: {error}") from error
        if size > MAX_METADATA:
            raise PluginError(f"Metadata.values takes {size} bytes, at most {MAX_METADATA} are kept")
    for key, value in metadata.stored.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise PluginError(f"Metadata.stored maps texts to texts; {key!r} is mapped to a {type(value).__name__}")
    return metadata


def _plain(value: Any, depth: int = 0) -> Any:
    """``value`` with text that no encoding has, and numbers that 64 bits do not hold, as text about them: files say both."""
    if depth > MAX_NESTING:
        raise InvalidFile(f"what it says of itself nests more than {MAX_NESTING} deep")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value) if value.bit_length() <= 256 else f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return {clean(key) if isinstance(key, str) else key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value


def _finish(draft: Draft, checkpoint: Checkpoint, metadata: Metadata, summary: Summary, blob: bytes) -> Found:
    state = reason = ""
    if draft.missing:
        more = f" and {len(draft.missing) - 3} more" if len(draft.missing) > 3 else ""
        state, reason = "incomplete", f"missing: {', '.join(name[:200] for name in draft.missing[:3])}{more}"
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


_PAGES = (b"<!doctype html", b"<html")


def _instead(file: File) -> dict[str, str] | None:
    """State and reason of what is no model of any format, however it is called: it is what came in its place."""
    if file.head.startswith(b"version https://git-lfs"):
        reason = f"{file.name} is a Git LFS pointer, the weights are not here; fetch them with: git lfs pull"
        return {"state": "incomplete", "reason": reason}
    if file.head[:200].lstrip().lower().startswith(_PAGES):
        return {"reason": f"{file.name} is a web page: its download was answered with one, perhaps to sign in; fetch it again"}
    return None


def _found(draft: Draft, checkpoint: Checkpoint, **fields: Any) -> Found:
    if len(fields.get("reason", "")) > MAX_REASON:  # it may hold a name out of the file
        fields["reason"] = fields["reason"][:MAX_REASON] + " ..."
    digest = hashlib.sha256()
    modified = draft.modified_ns or 0
    problem = ""
    for path in draft.files:
        try:
            if draft.modified_ns is None:
                modified = max(modified, os.stat(path).st_mtime_ns)
            # A checkpoint of thousands of chunks is not held open whole.
            with File(path) if len(draft.files) > MANY_FILES else nullcontext(checkpoint.open(path)) as file:
                digest.update(b"%d:" % file.size)
                digest.update(file.head)
                digest.update(file.tail)
                if path == draft.files[0] and fields.get("state") == "invalid":
                    fields.update(_instead(file) or {})
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
