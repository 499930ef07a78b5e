"""Model stores whose files have no names of their own: blobs named by digest, and what names them.

Two layouts are understood by their directories alone. ``blobs`` beside ``manifests`` (Ollama; the manifests are those of OCI
images): each manifest is a model, its weights are a blob, and so are its template, its licence, its parameters. ``blobs`` beside
``snapshots`` (the Hugging Face cache): links from snapshots to blobs are files like others, only their directory's name, a
commit, says nothing to people. What a store promises of a file is held against the file by `modelhub.promises`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from modelhub.errors import FileProblem
from modelhub.files import File
from modelhub.found import Found

MAX_MANIFEST = 4 << 20
MAX_LAYERS = 20_000
MAX_PARTS = 10_000
_WEIGHTS = ("model", "adapter", "projector")
"""Kinds of layers that are files of tensors; the first is what a model is told by."""
_TENSOR = "tensor"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_SNAPSHOT = re.compile(r"(?:^|/)(?:(?:models|datasets|spaces)--|models/)([^/]+)/snapshots/[^/]+(?:/(.*/)?([^/]+))?$")
_REPOSITORY = re.compile(r"/modelscope/(?:hub/)?(?:models/)?([^/.][^/]*/[^/]+)(?:/(.*/)?([^/]+))?$")
"""ModelScope's cache (modelscope ``hub/utils/utils.py``): a directory a repository, dots in its name written as ``___``; since
version 1.40 it has snapshots as well."""
_WHOLE = len("sha256-") + 64
_SHOWN = len("sha256-") + 12
"""What of a blob's name its users see while it is pulled."""
_USUAL = "registry.ollama.ai"


class Layer(NamedTuple):
    """A blob that a manifest names: what it is ("model", "template", "config"), its file's name, its size (-1: not said)."""

    kind: str
    name: str
    size: int


class Manifest(NamedTuple):
    """What a manifest names. ``weights``: the blobs with tensors, the one that the model is told by first; ``others``: all
    else; ``path`` and ``blobs`` are absolute."""

    path: str
    blobs: str
    weights: tuple[Layer, ...]
    others: tuple[Layer, ...]

    def place(self, layer: Layer) -> str:
        """The blob's file. Stores of older versions have a colon in its name."""
        path = os.path.join(self.blobs, layer.name)
        older = os.path.join(self.blobs, layer.name.replace("-", ":", 1))
        return older if not os.path.lexists(path) and os.path.lexists(older) else path

    @property
    def told_by(self) -> str:
        """The name of the blob that has to be looked at to know the model; "" where it is not there."""
        path = self.place(self.weights[0]) if self.weights and self.weights[0].kind != _TENSOR else ""
        return os.path.basename(path) if path and os.path.isfile(path) else ""


def read_manifest(path: str, blobs: str) -> Manifest | None:
    """What the file at ``path`` names in ``blobs``; None where it is no manifest of a model."""
    try:
        data = _json(path)
        layers = [_layer(str(entry["mediaType"]), entry) for entry in data["layers"][:MAX_LAYERS]]
        config = data.get("config")
        layers += [_layer("config", config)] if isinstance(config, dict) and config.get("digest") else []
    except (OSError, FileProblem, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None
    weights = sorted((layer for layer in layers if layer.kind in _WEIGHTS), key=lambda layer: _WEIGHTS.index(layer.kind))
    weights = weights or [layer for layer in layers if layer.kind == _TENSOR]
    if not weights:
        return None
    chosen = set(weights)
    others = dict.fromkeys(layer for layer in layers if layer not in chosen)
    return Manifest(path, blobs, tuple(dict.fromkeys(weights)), tuple(others))


def _json(path: str) -> Any:
    """The JSON in a file of a store, which may be anything, a pipe too."""
    with File(path) as file:
        return json.loads(file.read(0, min(file.size, MAX_MANIFEST)))


def _layer(media_type: str, entry: Mapping[str, Any]) -> Layer:
    match = _DIGEST.fullmatch(str(entry["digest"]))
    if match is None:
        raise ValueError("a digest of another kind")
    size = entry.get("size")
    return Layer(media_type.partition(";")[0].rpartition(".")[2], f"sha256-{match[1]}", size if type(size) is int else -1)


def manifest_name(relative: str) -> str:
    """What its users call the model of a manifest, given the manifest's path below ``manifests``: host and owner where they are
    not the usual."""
    host, _, rest = relative.partition("/")
    parts = (rest or host).split("/")
    if host == _USUAL and parts[0] == "library" and len(parts) > 1:
        parts = parts[1:]
    name = "/".join(parts[:-1]) + ":" + parts[-1] if len(parts) > 1 else parts[0]
    return name if host == _USUAL or not rest else f"{host}/{name}"


def as_manifest(found: Found, manifest: Manifest, name: str) -> Found:
    """A blob's checkpoint as the model that a manifest makes of it: with all of its blobs, incomplete where one is missing or has
    not the size that the manifest says."""
    files, size = [*found.files], found.size
    missing: list[str] = []
    odd: list[str] = []
    for layer in (*manifest.weights, *manifest.others):
        path = manifest.place(layer)
        try:
            nbytes = os.stat(path).st_size
        except OSError:
            missing.append(f"blobs/{layer.name} ({layer.kind})")
            continue
        if layer.size not in (-1, nbytes):
            odd.append(f"blobs/{layer.name} ({layer.kind}) has {nbytes:,} bytes, its manifest says {layer.size:,}")
        if path not in files:
            files.append(path)
            size += nbytes
    files.append(manifest.path)
    size += os.stat(manifest.path).st_size
    state, reason = found.state, found.reason
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        state, reason = "incomplete", f"missing: {', '.join(missing[:3])}{more}"
    elif odd:
        state, reason = "invalid", odd[0] + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else "")
    return replace(
        found, path=manifest.path, name=name, files=tuple(files), size=size, state=state, reason=reason,
        missing=(*found.missing, *missing),
    )  # fmt: skip


def untold(manifest: Manifest, name: str) -> Found:
    """A manifest whose model cannot be looked at: its weights are not there, or in a blob for each tensor. What the configuration
    beside it says is all that is known."""
    said: Mapping[str, Any] = {}
    for layer in manifest.others:
        if layer.kind == "config":
            with contextlib.suppress(OSError, FileProblem, ValueError, RecursionError):
                document = _json(manifest.place(layer))
                said = document if isinstance(document, dict) else {}
    values = {key: said[key][:80] for key in ("model_format", "model_family", "model_type", "file_type") if _text(said.get(key))}
    found = Found(
        path=manifest.path,
        name=name,
        format=values.pop("model_format", ""),
        files=(),
        architecture=values.get("model_family", ""),
        precision=values.get("file_type", ""),
        modified_ns=os.stat(manifest.path).st_mtime_ns,
        metadata=values,
    )
    if manifest.weights[0].kind == _TENSOR:
        count = len(manifest.weights)
        found = replace(found, state="unsupported", reason=f"its store keeps each of its {count:,} tensors in a blob: not read")
    return as_manifest(found, manifest, name)


def unfinished(path: str, told: Found | None) -> Found:
    """A blob that is not whole, at ``path``: nothing says yet whose it is. ``told``: what its bytes say of it, where its
    beginning is there."""
    name = os.path.basename(path)
    info = os.stat(path)
    done, total = _progress(path) or (info.st_size, 0)
    known = told or Found(path=path, name=name, format="", files=(path,), size=info.st_size, modified_ns=info.st_mtime_ns)
    return replace(
        known,
        name=name[:_SHOWN] + name[_WHOLE:],
        state="incomplete",
        reason=f"its pull has not ended: {done:,} {f'of {total:,} ' if total else ''}bytes are there",
        missing=(f"the rest of {name}",),
    )


def _progress(path: str) -> tuple[int, int] | None:
    """(bytes that are there, bytes that there are to be) of a blob that is written in parts; None where nothing says so. Its file
    is as long as the blob from the start (Ollama ``server/download.go``)."""
    done = total = 0
    try:
        for number in range(MAX_PARTS):
            if not os.path.lexists(f"{path}-{number}"):
                break
            part = _json(f"{path}-{number}")
            size = int(part["Size"])
            done, total = done + min(max(0, int(part["Completed"])), size), total + size
    except (OSError, FileProblem, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return (done, total) if total > 0 else None


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def behind(path: str) -> tuple[Manifest, str] | None:
    """The manifest at this absolute path, and what its users call its model; None where it is no manifest of a store."""
    start = path.find("/manifests/")
    while start >= 0:
        blobs = path[:start] + "/blobs"
        manifest = read_manifest(path, blobs) if os.path.isdir(blobs) else None
        if manifest:
            return manifest, manifest_name(path[start + len("/manifests/") :])
        start = path.find("/manifests/", start + 1)
    return None


def named(found: Found) -> Found:
    """A checkpoint by the name that people know, where it is a snapshot of a repository, or a file or directory in one: the
    repository's, and what comes below it (``org/repository/onnx/model``)."""
    match = _SNAPSHOT.search(found.path)
    if match:
        repository = match[1].replace("--", "/")
    else:
        match = _REPOSITORY.search(found.path)
        if not match or (not match[3] and found.path in found.files):
            return found
        repository = match[1].replace("___", ".")
    if not match[3]:
        return replace(found, name=repository) if found.name == os.path.basename(found.path) else found
    if found.name.startswith(f"{repository}/"):
        return found
    return replace(found, name=f"{repository}/{match[2] or ''}{found.name}")
