"""modelhub: a catalog of model checkpoints, and their conversion, quantization and verification through plugins.

This module holds the public names that plugins import. They are loaded on first use, so that ``import modelhub`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelhub import bits, dtypes, flatbuffers, home, ops, pickles, protobuf
    from modelhub.checksums import crc32c
    from modelhub.declared import (
        Assignment,
        Check,
        Choice,
        Codec,
        Combination,
        Conversion,
        Event,
        Format,
        Op,
        Probe,
        Program,
        ProgramResult,
        Recipe,
        RecipeOptions,
    )
    from modelhub.documents import read_json
    from modelhub.dtypes import DType
    from modelhub.engine.errors import measure
    from modelhub.errors import (
        FileProblem,
        IncompleteFile,
        InvalidFile,
        MissingCapability,
        ModelhubError,
        OutputsDiffer,
        UnsupportedFile,
        UsageError,
    )
    from modelhub.files import Checkpoint, File, Listing
    from modelhub.hookspecs import hookimpl
    from modelhub.nested import read_as, read_described, write_as
    from modelhub.shards import ShardGroup, check_index, group_of, indexed_group, read_index, shard_group
    from modelhub.table import Table
    from modelhub.types import (
        Columns,
        CopyFile,
        Detection,
        Extent,
        Finding,
        Inline,
        Metadata,
        Node,
        Patch,
        Placed,
        Put,
        Rejected,
        StartFile,
        Tail,
        Tensor,
        WriteOptions,
        Writer,
    )
    from modelhub.zips import StoredZip, ZipMember, zip_members

_PUBLIC = {
    "crc32c": "checksums",
    "read_json": "documents",
    "DType": "dtypes",
    **dict.fromkeys(
        (
            "FileProblem", "IncompleteFile", "InvalidFile", "MissingCapability", "ModelhubError",
            "OutputsDiffer", "UnsupportedFile", "UsageError",
        ),
        "errors",
    ),
    **dict.fromkeys(("Checkpoint", "File", "Listing"), "files"),
    "hookimpl": "hookspecs",
    **dict.fromkeys(("read_as", "read_described", "write_as"), "nested"),
    **dict.fromkeys(("ShardGroup", "check_index", "group_of", "indexed_group", "read_index", "shard_group"), "shards"),
    "measure": "engine.errors",
    "Table": "table",
    **dict.fromkeys(
        (
            "Assignment", "Check", "Choice", "Codec", "Combination", "Conversion", "Event", "Format", "Op", "Probe", "Program",
            "ProgramResult", "Recipe", "RecipeOptions",
        ),
        "declared",
    ),
    **dict.fromkeys(
        (
            "Columns", "CopyFile", "Detection", "Extent", "Finding", "Inline", "Metadata", "Node", "Patch", "Placed", "Put",
            "Rejected", "StartFile", "Tail", "Tensor", "WriteOptions", "Writer",
        ),
        "types",
    ),
    **dict.fromkeys(("StoredZip", "ZipMember", "zip_members"), "zips"),
}  # fmt: skip

__all__ = [
    "Assignment",
    "Check",
    "Checkpoint",
    "Choice",
    "Codec",
    "Columns",
    "Combination",
    "Conversion",
    "CopyFile",
    "DType",
    "Detection",
    "Event",
    "Extent",
    "File",
    "FileProblem",
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
    "OutputsDiffer",
    "Patch",
    "Placed",
    "Probe",
    "Program",
    "ProgramResult",
    "Put",
    "Recipe",
    "RecipeOptions",
    "Rejected",
    "ShardGroup",
    "StartFile",
    "StoredZip",
    "Table",
    "Tail",
    "Tensor",
    "UnsupportedFile",
    "UsageError",
    "WriteOptions",
    "Writer",
    "ZipMember",
    "bits",
    "check_index",
    "crc32c",
    "dtypes",
    "flatbuffers",
    "group_of",
    "home",
    "hookimpl",
    "indexed_group",
    "measure",
    "ops",
    "pickles",
    "protobuf",
    "read_as",
    "read_described",
    "read_index",
    "read_json",
    "shard_group",
    "write_as",
    "zip_members",
]


def __getattr__(name: str) -> Any:
    if name in ("bits", "dtypes", "flatbuffers", "home", "ops", "pickles", "protobuf"):
        return import_module(f"modelhub.{name}")
    if name in _PUBLIC:
        value = globals()[name] = getattr(
            import_module(f"modelhub.{_PUBLIC[name]}"), name
        )  # asked for two thousand times otherwise
        return value
    raise AttributeError(f"module 'modelhub' has no attribute {name!r}")
