"""Reads the tree of arrays of an Orbax checkpoint: names from ``_METADATA``, shapes and chunks from zarr's metadata; no weights.

Keys of the tree are joined by ``/``, as users of Flax say them. Where a step has several items with arrays, the item's name goes
before (``default`` does not).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelhub import Checkpoint, File, FileProblem, Finding, IncompleteFile, InvalidFile, Metadata, Tensor, read_json

from modelhub_orbax import chunks, zarr
from modelhub_orbax.layout import DATABASE, MAX_METADATA, OLD, STEP, TREE
from modelhub_orbax.store import Store, Values, arrays

MAX_ARRAY_METADATA = 1 << 20
MAX_NOTE = 1 << 16
MAX_DEPTH = 64
_SHOWN = 64
_STATE = re.compile(r"(.*/)?(opt_state|optimizer_state|param_states)/.*|optimizer/state/.*", re.DOTALL)
"""What an optimizer keeps: of optax in a ``TrainState``, of T5X and ``flax.optim``."""


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Every array of every item, and what else is said there. An optimizer's arrays beside a model's are only stored."""
    directory = checkpoint.directory
    roots = {os.path.dirname(path) for path in checkpoint.files if os.path.basename(path) in (TREE, DATABASE, OLD)}
    items = sorted(root for root in roots if not os.path.basename(root).startswith("ocdbt.process_"))
    if directory in items:
        items = [directory]
    values: dict[str, Any] = {}
    container: set[str] = set()
    found: list[Tensor] = []
    for item in items:
        name = os.path.relpath(item, directory)
        prefix = f"{name}/" if len(items) > 1 and name != "default" else ""
        found += _item(checkpoint, item, prefix, values, container)
    state = {tensor.name for tensor in found if _STATE.fullmatch(tensor.name)}
    if 0 < len(state) < len(found):
        values["optimizer_tensors"] = len(state)
        found = [tensor._replace(view="stored") if tensor.name in state else tensor for tensor in found]
    yield from found
    values.update(_notes(checkpoint, directory))
    if len(items) > 1:
        values["items"] = [os.path.relpath(item, directory) for item in items]
    if os.path.basename(directory).isdecimal():
        values["step"] = int(os.path.basename(directory)[:18])
    yield Metadata(values=values, container=", ".join(sorted(container)))


def _item(checkpoint: Checkpoint, directory: str, prefix: str, values: dict[str, Any], container: set[str]) -> Iterator[Tensor]:
    store = Store(checkpoint, directory)
    found = arrays(store.values)
    said = _document(store, TREE) if TREE in store else {}
    complete = said.get("store_array_data_equal_to_fill_value") is True
    names, texts = _tree(said, TREE)
    if not said:
        names = {array: array.replace(".", "/") for array in found}
    held = "OCDBT" if store.prefix + DATABASE in store.files else "directories"
    for array, parts in found.items():
        layout = _layout(array, parts, store)
        container.add(f"{'zarr 3' if 'zarr.json' in parts else 'zarr'} in {held}")
        yield chunks.tensor(prefix + names.get(array, array), layout, parts, store, complete)
    lost = sorted(names.keys() - found.keys())
    if lost:
        raise IncompleteFile(f"{TREE} names {lost[0]!r:.200}, of which there is no array ({len(lost)} such)")
    if texts:
        values.update(_texts(store, texts, prefix))


def _layout(array: str, parts: Values, store: Store) -> zarr.Layout:
    name = ".zarray" if ".zarray" in parts else "zarr.json"
    where = f"{array}/{name}"
    said = read_json(_Memory(where, store.read(parts[name], MAX_ARRAY_METADATA, where)))
    return zarr.zarr2(said, where) if name == ".zarray" else zarr.zarr3(said, where)


class _Memory(File):
    """A document that is read already, for those who take a file."""

    __slots__ = ("_data",)

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(name, len(data))
        self._data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        return self._data[offset : offset + nbytes]


def _document(store: Store, name: str) -> Mapping[str, Any]:
    with store.open(name) as file:
        return read_json(file, limit=MAX_METADATA)


def _tree(said: Mapping[str, Any], where: str) -> tuple[dict[str, str], dict[str, str]]:
    """(names of arrays, names of texts) by what TensorStore calls them."""
    tree = said.get("tree_metadata", {})
    if not isinstance(tree, dict):
        raise InvalidFile(f"{where}: tree_metadata is a {type(tree).__name__}, an object was expected")
    names: dict[str, str] = {}
    texts: dict[str, str] = {}
    for path, leaf in tree.items():
        keys = leaf.get("key_metadata") if isinstance(leaf, dict) else None
        value = leaf.get("value_metadata") if isinstance(leaf, dict) else None
        if not isinstance(keys, list) or not isinstance(value, dict) or len(keys) > MAX_DEPTH:
            raise InvalidFile(f"{where}: {path!r:.200} has no keys, or no value")
        way = [str(key.get("key")) if isinstance(key, dict) else "" for key in keys]
        if value.get("skip_deserialize"):  # nothing, or an empty container
            continue
        if value.get("value_type") == "string":
            texts[".".join(way)] = "/".join(way)
        else:
            names[".".join(way)] = "/".join(way)
    return names, texts


def _texts(store: Store, texts: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """Texts of the tree, which Orbax keeps in one document."""
    if "_strings.json" not in store:
        return {}
    said = _document(store, "_strings.json")
    shown = [key for key in texts if isinstance(said.get(key), str) and len(said[key]) < 1000][:_SHOWN]
    return {prefix + texts[key]: said[key] for key in shown}


def _notes(checkpoint: Checkpoint, directory: str) -> dict[str, Any]:
    """What users had saved beside the arrays: items in JSON, and custom metadata of the step."""
    found: dict[str, Any] = {}
    for path in checkpoint.files:
        above, name = os.path.split(path)
        try:
            if name == "metadata" and os.path.dirname(above) == directory and len(found) < _SHOWN:
                with File(path) as file:
                    found[os.path.basename(above)] = read_json(file, limit=MAX_NOTE)
            elif name == STEP and above == directory:
                with File(path) as file:
                    custom = read_json(file, limit=MAX_NOTE).get("custom_metadata")
                if custom:
                    found["custom_metadata"] = custom
        except FileProblem:
            continue
    return found
