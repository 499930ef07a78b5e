"""`Model`: one checkpoint as people and ``--json`` see it, from the catalog or from one look at a path. Reads no file, writes
nothing."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from modelhub.errors import ModelNotFound

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.found import Found
    from modelhub.table import Table
    from modelhub.types import Finding


class Model(NamedTuple):
    """A checkpoint. Paths are text as `os.fsdecode` gives it; `to_json` escapes what is not UTF-8.

    ``path`` is relative to ``root``, absolute where ``root`` is None. ``files`` likewise, the primary one first. ``size`` is in
    bytes over all files, ``modified_ns`` the latest mtime. ``digest`` is "sha256:..." once every file has been read, else None.
    ``state`` is what people are told: offline and missing come before what is stored. ``version`` counts the contents that this
    place has had. ``catalog`` and ``found`` say where the rest comes from: one of them is None.
    """

    id: str | None
    name: str
    root: str | None
    path: str
    format: str
    container: str
    architecture: str
    precision: str
    dtypes: Mapping[str, int]
    parameters: int
    size: int
    tensors: int
    files: tuple[str, ...]
    state: str
    reason: str
    digest: str | None
    modified_ns: int
    derived_from: str | None
    version: int = 1
    key: int = 0
    catalog: Catalog | None = None
    found: Found | None = None

    @property
    def absolute_path(self) -> str:
        """Where the checkpoint lies: its primary file, or its directory."""
        if self.root is None:
            return self.path
        return os.path.join(self.root, self.path) if self.path not in ("", ".") else self.root

    @property
    def file_paths(self) -> tuple[str, ...]:
        """The checkpoint's files, absolute, primary first."""
        return tuple(os.path.join(self.root, file) for file in self.files) if self.root is not None else self.files

    @property
    def modified(self) -> str:
        """The latest mtime, ISO 8601 in UTC."""
        return iso(self.modified_ns)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the format says of itself (context_length, ...)."""
        return self._described()[0]

    @property
    def stored(self) -> Mapping[str, str]:
        """The metadata that the file keeps beside its tensors, as text."""
        return self._described()[1]

    @property
    def findings(self) -> tuple[Finding, ...]:
        if self.found is not None:
            return self.found.findings
        return self._catalog().findings(self)

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.catalog.aliases_of(self) if self.catalog else ()

    @property
    def tags(self) -> Mapping[str, str]:
        return self.catalog.tags(self) if self.catalog else {}

    @property
    def notes(self) -> tuple[str, ...]:
        return self.catalog.notes(self) if self.catalog else ()

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """How this checkpoint came to be: one entry for each source it was made from."""
        return self.catalog.lineage(self) if self.catalog else []

    def table(self) -> Table:
        """The tensors, with extents in `file_paths`."""
        if self.found is not None:
            return self.found.load_table()
        from modelhub.table import Table, unpack
        from modelhub.types import Metadata

        packed = self._catalog().packed_table(self)
        values, stored = self._described()
        metadata = Metadata(values=values, stored=stored, container=self.container, precision=self.precision)
        return Table(unpack(packed, self.file_paths) if packed else (), metadata, self.file_paths)

    def to_json(self, *, details: bool = False) -> dict[str, Any]:
        """The fields of ``ls --json``; with ``details`` those of ``show --json``, tensors excepted."""
        found: dict[str, Any] = {
            "id": self.id,
            "name": printable(self.name),
            "root": None if self.root is None else printable(self.root),
            "path": printable(self.path),
        }
        if not self.path.isascii() and printable(self.path) != self.path:
            found["path_b64"] = base64.b64encode(os.fsencode(self.path)).decode()
        found |= {
            "format": self.format,
            "container": self.container,
            "architecture": self.architecture,
            "precision": self.precision,
            "dtypes": dict(self.dtypes),
            "parameters": self.parameters,
            "size": self.size,
            "files": [printable(file) for file in self.files],
            "tensors_count": self.tensors,
            "state": self.state,
            "reason": self.reason,
            "digest": self.digest,
            "modified": self.modified,
            "derived_from": self.derived_from,
            "version": self.version,
        }
        if details:
            found |= {
                "metadata": dict(self.metadata),
                "stored": dict(self.stored),
                "findings": [finding_json(finding) for finding in self.findings],
                "aliases": list(self.aliases),
                "tags": dict(self.tags),
                "notes": list(self.notes),
                "lineage": self.lineage,
            }
        return found

    def _catalog(self) -> Catalog:
        if self.catalog is None:
            raise ModelNotFound(f"{self.name} is not in the catalog", "scan its directory first")
        return self.catalog

    def _described(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        if self.found is not None:
            return self.found.metadata, self.found.stored
        return self._catalog().description(self)


def from_found(found: Found) -> Model:
    """The Model of a path outside the catalog: no id, no root, absolute paths."""
    return Model(
        id=None,
        name=found.name,
        root=None,
        path=found.path,
        format=found.format,
        container=found.container,
        architecture=found.architecture,
        precision=found.precision,
        dtypes=found.dtypes,
        parameters=found.parameters,
        size=found.size,
        tensors=found.tensors,
        files=tuple(found.files),
        state=found.state,
        reason=found.reason,
        digest=None,
        modified_ns=found.modified_ns,
        derived_from=None,
        found=found,
    )


def printable(text: str) -> str:
    """``text`` with the bytes that are not UTF-8 as ``\\xNN``: always encodable, and still telling."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # lone surrogates that no file system made
        return text.encode("utf-8", "backslashreplace").decode()


def clean(text: str) -> str:
    """``text`` as a database can hold it: without lone surrogates and NULs."""
    return text if text.isascii() and "\0" not in text else printable(text).replace("\0", "\\x00")


def iso(ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, to the second."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))
    except (ValueError, OverflowError, OSError):  # an mtime that no calendar has
        return "1970-01-01T00:00:00Z"


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding as ``--json`` prints it: tensor and file only where there is one."""
    found: dict[str, Any] = {"check": finding.check, "severity": finding.severity}
    if finding.tensor:
        found["tensor"] = finding.tensor
    if finding.file:
        found["file"] = printable(finding.file)
    return found | {"message": finding.message}


def checkpoint_sha256(files: Sequence[tuple[str, bytes]]) -> bytes:
    """The SHA-256 of a checkpoint, given its files' paths relative to its directory, and their SHA-256.

    That of its only file; of several, what ``sha256sum FILES | LC_ALL=C sort -k2 | sha256sum`` says.
    """
    if len(files) == 1:
        return files[0][1]
    from hashlib import sha256

    lines = sorted((os.fsencode(path), digest) for path, digest in files)
    return sha256(b"".join(digest.hex().encode() + b"  " + path + b"\n" for path, digest in lines)).digest()
