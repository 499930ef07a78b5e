"""Tells Keras files, and plain HDF5, and reads their tables: the weights, the architecture, and what of it is code."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from modelhub import (
    Checkpoint,
    Detection,
    Extent,
    File,
    FileProblem,
    Finding,
    InvalidFile,
    Metadata,
    Node,
    Rejected,
    Tensor,
    UnsupportedFile,
    ZipMember,
    ops,
    zip_members,
)

from modelhub_keras import attributes, config, container, datasets, describe, groups, names, quantized, shards
from modelhub_keras.container import Container
from modelhub_keras.groups import group_at, links

SUFFIXES = (".keras", ".h5", ".hdf5", shards.INDEX)
HDF5_SUFFIXES = (".h5", ".hdf5")
ZIP = b"PK\x03\x04"
WEIGHTS = "model.weights.h5"
OUTSIDE = "hdf5-outside"
MAX_INFLATED = 512 << 20
"""Weights that were compressed with their archive are read whole to find what is in them."""
MAX_CONFIG = 64 << 20
MAX_LOOKED = 1000
_MARKS = (b"layer_names", b"keras_version", b"model_config", b"model_weights", b"_layer_checkpoint_dependencies")
"""What stands somewhere in the headers of Keras's files, where nobody can look closer."""

Records = Iterator[Tensor | Metadata | Finding]


def detect(file: File) -> Detection | Rejected | None:
    """A ``.keras`` archive, or an HDF5 file that Keras wrote."""
    if file.name.endswith((shards.INDEX, ".weights.h5")):
        index = file.name.endswith(shards.INDEX)
        try:
            if (answer := shards.group(file)) is not None or index:
                return answer
        except FileProblem as problem:  # the index's own trouble: a part of it can be looked at by itself
            if index:
                return Rejected(problem.message, 30)
    archive = file.name.lower().endswith(".keras")
    if file.head.startswith(ZIP) and archive:
        return _of_archive(file)
    if _is_hdf5(file):
        return Detection([file.path], confidence=95) if archive or _is_keras(file) else None
    if archive:
        return Rejected(f"{file.name}: neither a zip archive nor HDF5: it starts with {file.head[:8]!r}", 30)
    return None


def detect_plain(file: File) -> Detection | Rejected | None:
    """Any other HDF5 file that is called like one: whoever keeps in this container what is no model calls it otherwise."""
    if _is_hdf5(file):
        return Detection([file.path], confidence=40)
    return Rejected(f"{file.name}: no HDF5 file: it starts with {file.head[:8]!r}, expected {container.MAGIC!r}", 20)


def _is_hdf5(file: File) -> bool:
    """The signature stands at the start, or behind a block of the user's own of 512 bytes, or 1024, 2048, ..."""
    return file.head.startswith(container.MAGIC) or any(file.head.startswith(container.MAGIC, 512 << n) for n in range(5))


def _of_archive(file: File) -> Detection | Rejected:
    try:
        found = {member.name for member in zip_members(file)}
    except FileProblem as problem:
        state = "incomplete" if problem.state == "incomplete" else "invalid"
        return Rejected(problem.message, 60, state=state)  # type: ignore[arg-type]
    if "config.json" in found or "metadata.json" in found:
        return Detection([file.path], confidence=95)
    return Rejected(f"{file.name}: a zip archive without config.json: no Keras model", 60)


def _is_keras(file: File) -> bool:
    """Whether an HDF5 file is one of Keras's; where its headers are broken, what stands in them has to do."""
    try:
        return _layout(Container(file, file.name)) != "plain"
    except FileProblem:
        return file.name.lower().endswith(".weights.h5") or any(mark in file.head or mark in file.tail for mark in _MARKS)


def _layout(file: Container) -> str:
    """ "model" or "weights" as Keras 1 and 2 laid them out, "variables" as Keras 3 does, "plain" for what is neither."""
    if attributes.has(file, file.root, "model_config") or group_at(file, "model_weights") is not None:
        return "model"
    if attributes.has(file, file.root, "layer_names", "layer_names0"):
        return "weights"
    keras = ("layers", "_layer_checkpoint_dependencies", "optimizer/vars", "vars")
    if any(group_at(file, name) is not None for name in keras):
        return "variables"
    for name in itertools.islice(links(file, file.root), MAX_LOOKED):  # a model that is a class of its own: its attributes
        if group_at(file, f"{name.decode('utf-8', 'surrogateescape')}/vars") is not None:
            return "variables"
    return "plain"


# --- reading ------------------------------------------------------------------------------------------------------


def read(checkpoint: Checkpoint) -> Records:
    """What is not safe first, also where the weights then cannot be read; then the weights, and what the file says of itself."""
    file = checkpoint.primary
    if file.head.startswith(ZIP):
        yield from _archive(file)
        return
    if len(checkpoint.files) > 1:
        yield from _shards(checkpoint)
        return
    opened = Container(file, file.name)
    found = _model_config(opened)
    if found is not None:
        yield from found.findings
    tensors = yield from _weights(opened, container.placed(file, 0), found)
    yield describe.metadata(opened, found, tensors, _layout(opened), "hdf5")


def configuration(file: File) -> config.Config | None:
    """The configuration of the model in ``file``; None for weights alone."""
    if file.head.startswith(ZIP):
        return _config_json(file, {member.name: member for member in zip_members(file)})
    return _model_config(Container(file, file.name))


def _model_config(file: Container) -> config.Config | None:
    """The model's; what its losses and metrics would run is found in the configuration of its training."""
    found = _examined(file, "model_config")
    training = _examined(file, "training_config")
    if found is not None and training is not None:
        found.findings += training.findings
    return found


def _examined(file: Container, attribute: str) -> config.Config | None:
    text = attributes.text(file, file.root, attribute)
    return config.examine(config.load(text, f"{file.name}: its {attribute}"), file.name) if isinstance(text, str) else None


def _config_json(file: File, members: Mapping[str, ZipMember]) -> config.Config | None:
    if "config.json" not in members:
        return None
    text = members["config.json"].read(file, limit=MAX_CONFIG)
    return config.examine(config.load(text, f"{file.name}: config.json"), file.name)


def _weights(
    opened: Container, place: container.Place, model: config.Config | None
) -> Generator[Tensor | Finding, None, list[Tensor]]:
    """The tensors of an HDF5 file. Returns the model's own."""
    found = yield from _datasets(opened, place)
    readable, findings = names.readable(opened, _kinds(found), model.groups if model else {})
    yield from findings
    return (yield from _named(found, readable, model.quantization if model else ""))


def _datasets(opened: Container, place: container.Place) -> Generator[Finding, None, dict[str, Tensor]]:
    """Path -> tensor, under its path."""
    found: dict[str, Tensor] = {}
    for one in groups.walk(opened):
        tensor, where = datasets.tensor(opened, one, place)
        if where:
            message = f"{one.path[:200]!r} has {where}: a reader of the model would open that file; it is not opened here"
            yield Finding(OUTSIDE, "unsafe", message, file=opened.name)
        found[one.path] = tensor
    return found


def _named(found: Mapping[str, Tensor], readable: Mapping[str, str], mode: str = "") -> Generator[Tensor, None, list[Tensor]]:
    """The tensors under the names that people know them by; those of its training are stored alone. Returns the model's own."""
    called: list[Tensor] = []
    for path, name in readable.items():
        if names.is_state(path):
            yield found[path]._replace(name=name, view="stored")
        else:
            called.append(found[path]._replace(name=name))
    yield from quantized.wholes(called, mode)
    return called


def _kinds(found: Mapping[str, Tensor]) -> dict[str, str]:
    return {path: tensor.dtype for path, tensor in found.items()}


def _shards(checkpoint: Checkpoint) -> Records:
    """One table of several files, and their index held against it."""
    found: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    holders: dict[str, set[str]] = {}
    metadata = Metadata()
    for file in checkpoint:
        if file.name.endswith(shards.INDEX):
            continue
        opened = Container(file, file.name)
        part = yield from _datasets(opened, container.placed(file, 0))
        if double := sorted(set(part) & set(found)):
            raise InvalidFile(f"{file.name}: {double[0][:200]!r} stands in another file of the same weights too")
        found |= part
        owners |= names.owners(opened, list(part), {})
        for path in part:
            holders.setdefault(path.rpartition("/")[0], set()).add(file.name)
        metadata = describe.metadata(opened, None, list(part.values()), "variables", "hdf5")
    readable = names.unique(names.numbered(list(found), owners, _kinds(found)))
    yield from _named(found, readable)
    yield metadata
    yield from shards.check(checkpoint.open(checkpoint.files[-1]), holders)


def _archive(file: File) -> Records:
    members = {member.name: member for member in zip_members(file)}
    notes: dict[str, Any] = {}
    if "metadata.json" in members:
        text = members["metadata.json"].read(file, limit=1 << 20)
        notes = config.load(text, f"{file.name}: metadata.json")
    found = _config_json(file, members)
    if found is not None:
        yield from found.findings
    weights = members.get(WEIGHTS)
    if weights is None:
        others = sorted(name for name in members if "weights" in name)
        if others:
            raise UnsupportedFile(f"{file.name}: its weights are in {others[0][:100]}, not in {WEIGHTS}: this is not read")
        raise InvalidFile(f"{file.name}: there is no {WEIGHTS} in the archive")
    opened, place = _inside(file, weights)
    tensors = yield from _weights(opened, place, found)
    yield describe.metadata(opened, found, tensors, "variables", "keras", notes)


def _inside(file: File, member: ZipMember) -> tuple[Container, container.Place]:
    """The HDF5 file that is a member, and where its bytes lie. Keras stores it; who packed the archive anew may have compressed
    it."""
    name = f"{file.name}: {WEIGHTS}"
    if not member.deflated:
        return Container(file, name, member.offset, member.size), container.placed(file, member.offset)
    if member.size > MAX_INFLATED:
        what = f"the {member.size} bytes of {WEIGHTS} are compressed with their archive"
        raise UnsupportedFile(f"{file.name}: {what}; pack it anew with zip -0 to have it read")

    def place(offset: int, nbytes: int) -> Extent | Node:
        return ops.inflate(member.extent, nbytes=nbytes, skip=offset)

    return Container(member.read(file, limit=MAX_INFLATED), name), place
