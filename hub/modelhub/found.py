"""`Found`: what one look at a checkpoint says of it. Made in a parsing worker; shown as it is, or handed to the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelhub.table import Table, unpack
from modelhub.types import Finding, Metadata


@dataclass(frozen=True, slots=True)
class Claim:
    """One format's answer about a file or directory, kept visible even where another format won."""

    format: str
    confidence: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint as its bytes describe it.

    ``path``: absolute; the primary file, or the directory of a directory's claim. ``files``: absolute, primary first.
    ``state``: ready, incomplete, invalid or unsupported, with ``reason``. ``size``: bytes over the files. ``modified_ns``: the
    latest mtime. ``parameters`` and ``dtypes`` count logical elements, ties once. ``table``: the packed tensors
    (`modelhub.table.pack`), b"" where there are none. ``header_digest``: SHA-256 over the heads and tails of the files, 32
    bytes: tells new content at an old place, nothing more.
    """

    path: str
    name: str
    format: str
    files: tuple[str, ...]
    state: str = "ready"
    reason: str = ""
    container: str = ""
    architecture: str = ""
    precision: str = ""
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    tensors: int = 0
    size: int = 0
    modified_ns: int = 0
    missing: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    claims: tuple[Claim, ...] = ()
    table: bytes = b""
    header_digest: bytes = b""

    def load_table(self) -> Table:
        """The tensors and the metadata, as records."""
        tensors = unpack(self.table, self.files) if self.table else ()
        metadata = Metadata(values=self.metadata, stored=self.stored, container=self.container, precision=self.precision)
        return Table(tensors, metadata, self.files)
