"""modelhub: a catalog of model checkpoints, and their conversion, quantization and verification through plugins.

This module holds the public names that plugins import. They are loaded on first use, so that ``import modelhub`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelhub import dtypes, ops
    from modelhub.dtypes import DType
    from modelhub.errors import IncompleteFile, InvalidFile, MissingCapability, ModelhubError, UnsupportedFile
    from modelhub.files import Checkpoint, File, Listing
    from modelhub.hookspecs import hookimpl
    from modelhub.table import Table
    from modelhub.types import (
        Check,
        Codec,
        Conversion,
        CopyFile,
        Detection,
        Event,
        Extent,
        Finding,
        Format,
        Inline,
        Metadata,
        Node,
        Op,
        Patch,
        Placed,
        Program,
        Put,
        Recipe,
        Rejected,
        StartFile,
        Tail,
        Tensor,
        WriteOptions,
    )
    from modelhub.zips import StoredZip, ZipMember, zip_members

_PUBLIC = {
    "DType": "dtypes",
    **dict.fromkeys(("IncompleteFile", "InvalidFile", "MissingCapability", "ModelhubError", "UnsupportedFile"), "errors"),
    **dict.fromkeys(("Checkpoint", "File", "Listing"), "files"),
    "hookimpl": "hookspecs",
    "Table": "table",
    **dict.fromkeys(
        (
            "Check", "Codec", "Conversion", "CopyFile", "Detection", "Event", "Extent", "Finding", "Format", "Inline", "Metadata", "Node",
            "Op", "Patch", "Placed", "Program", "Put", "Recipe", "Rejected", "StartFile", "Tail", "Tensor", "WriteOptions",
        ),
        "types",
    ),
    **dict.fromkeys(("StoredZip", "ZipMember", "zip_members"), "zips"),
}  # fmt: skip

__all__ = [
    "Check",
    "Checkpoint",
    "Codec",
    "Conversion",
    "CopyFile",
    "DType",
    "Detection",
    "Event",
    "Extent",
    "File",
    "Finding",
    "Format",
    "IncompleteFile",
    "Inline",
    "InvalidFile",
    "Listing",
    "Metadata",
    "MissingCapability",
    "ModelhubError",
    "Node",
    "Op",
    "Patch",
    "Placed",
    "Program",
    "Put",
    "Recipe",
    "Rejected",
    "StartFile",
    "StoredZip",
    "Table",
    "Tail",
    "Tensor",
    "UnsupportedFile",
    "WriteOptions",
    "ZipMember",
    "dtypes",
    "hookimpl",
    "ops",
    "zip_members",
]


def __getattr__(name: str) -> Any:
    if name in ("dtypes", "ops"):
        return import_module(f"modelhub.{name}")
    if name in _PUBLIC:
        return getattr(import_module(f"modelhub.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'modelhub' has no attribute {name!r}")
