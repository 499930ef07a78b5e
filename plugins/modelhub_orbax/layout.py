"""Which directories are Orbax checkpoints: a step with its items, an item by itself, and what older libraries wrote.

(Orbax's "Checkpoint Format Guide".) An item is a tree of arrays: ``_METADATA`` says its names, ``manifest.ocdbt`` or a directory
for each array holds them. A step has ``_CHECKPOINT_METADATA`` and a directory for each item (``default``, ``state``, ``params``);
in a checkpoint without items both stand in one directory. T5X wrote a directory for each array and a ``checkpoint`` in msgpack.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from itertools import islice

from modelhub import Detection, FileProblem, Listing, Rejected, read_json

TREE, STEP, DATABASE, OLD = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint"
MARKS = (TREE, STEP, DATABASE, OLD)
REACH = 4
MAX_METADATA, MAX_NOTE = 256 << 20, 1 << 20
_NOTES = (STEP, "commit_success.txt", "metrics", "orbax.checkpoint")
MAX_FILES = 90_000
MAX_DIRECTORIES, MAX_DEPTH = 200_000, 40
_PROCESS = re.compile(r"ocdbt\.process_\d+")
_UNFINISHED = re.compile(r".+\.orbax-checkpoint-tmp(-\d+)?")
_MSGPACK_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)
_BESIDE = 2.0
_last: dict[str, tuple[float, object, Detection | Rejected | None]] = {}


def detect_directory(listing: Listing) -> Detection | Rejected | None:
    """A step, an item, or one of them that Orbax has not finished writing."""
    if not any(mark in listing for mark in MARKS) and not _UNFINISHED.fullmatch(listing.name):
        return None
    if _PROCESS.fullmatch(listing.name):  # a part of an item: the directory above is the checkpoint
        return None
    # Each directory below asks again, one after another: what was found a moment ago is found still.
    now = time.monotonic()
    known, names = _last.get(listing.path), (dict(listing.files), list(listing.directories))
    if known is not None and now - known[0] < _BESIDE and len(listing.directories) > 16 and known[1] == names:
        return known[2]
    answer = _look(listing)
    _last.clear()
    _last[listing.path] = (now, names, answer)
    return answer


def _look(listing: Listing) -> Detection | Rejected | None:
    if _UNFINISHED.fullmatch(listing.name):
        files = list(islice(_below(listing), MAX_FILES))
        if not files:
            return None
        reason = f"Orbax has not finished writing it, or was stopped: {listing.name} gets its own name when it is whole"
        return Rejected(reason, confidence=95, state="incomplete", files=files)
    items = items_of(listing)
    if not items:
        return None
    files = [listing.join(name) for name in sorted(listing.files, key=lambda name: (name not in MARKS, name))]
    if "" not in items:  # a step: what its items are not made of is not the step's, but for notes of Orbax's own
        files = [path for path in files if os.path.basename(path) in _NOTES]
    else:
        files = [path for path in files if _own(os.path.basename(path))]
    named = _named(listing)
    for name in listing.directories:
        if "" in items or name in items or name in named or _is_note(listing.subdirectory(name)):
            files += islice(_below(listing.subdirectory(name)), MAX_FILES + 1 - len(files))
        if len(files) > MAX_FILES:
            return Rejected(
                f"an Orbax checkpoint of more than {MAX_FILES} files: they are not told apart", 95, state="unsupported"
            )
    return Detection(files, confidence=95, name=_name(listing))


def items_of(listing: Listing) -> list[str]:
    """Names of the item directories of a step; [""] where the directory is an item itself."""
    if _is_item(listing):
        return [""]
    if STEP not in listing:
        return []
    return [name for name in listing.directories if not _UNFINISHED.fullmatch(name) and _is_item(listing.subdirectory(name))]


def _is_item(listing: Listing) -> bool:
    if TREE in listing:
        try:
            return "tree_metadata" in read_json(listing.file(TREE), limit=MAX_METADATA)
        except FileProblem:
            return DATABASE in listing or "d" in listing.directories or STEP in listing
    if DATABASE in listing:
        return "d" in listing.directories or any(_PROCESS.fullmatch(name) for name in listing.directories)
    if OLD in listing:
        head = listing.file(OLD).head
        return bool(head) and head[0] in _MSGPACK_MAPS and _has_arrays(listing)
    return False


def _has_arrays(listing: Listing) -> bool:
    return any(".zarray" in listing.subdirectory(name) for name in listing.directories[:64])


def _named(listing: Listing) -> frozenset[str]:
    """The items that a step says it has, trees or not (a data pipeline's state, for one)."""
    try:
        said = read_json(listing.file(STEP), limit=MAX_NOTE).get("item_handlers") if STEP in listing else None
    except FileProblem:
        said = None
    return frozenset(said) if isinstance(said, dict) else frozenset()


def _is_note(listing: Listing) -> bool:
    """An item of a step that is no tree: a document in JSON, as ``JsonSave`` writes it."""
    return set(listing.files) <= {"metadata", "commit_success.txt"} and "metadata" in listing and not listing.directories


def _own(name: str) -> bool:
    return name in (*MARKS, *_NOTES, "_sharding", "_strings.json") or name.startswith("manifest.")


def _name(listing: Listing) -> str:
    """A step is a number, which says little without the run that it is of."""
    path = listing.path
    name = os.path.basename(path)
    if name in ("default", "state", "params", "model"):
        path = os.path.dirname(path)
        name = os.path.basename(path) or name
    if name.isdecimal():
        return f"{os.path.basename(os.path.dirname(path)) or 'step'}-{name}"
    return name


def _below(listing: Listing) -> Iterator[str]:
    """Every file of a directory and of those below it; links to directories are not followed."""
    stack = [(listing, 0)]
    for _ in range(MAX_DIRECTORIES):
        if not stack:
            return
        here, depth = stack.pop()
        for name in here.files:
            yield here.join(name)
        if depth < MAX_DEPTH:
            below = [name for name in here.directories if not os.path.islink(here.join(name))]
            stack.extend((here.subdirectory(name), depth + 1) for name in reversed(below))
