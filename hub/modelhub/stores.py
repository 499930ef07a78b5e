"""Model stores whose files have no names of their own: blobs named by digest, and what names them.

Two layouts are understood by their directories alone. ``blobs`` beside ``manifests`` (Ollama; the manifests are those of OCI
images): each manifest is a model, its weights are a blob. ``blobs`` beside ``snapshots`` (the Hugging Face cache): links from
snapshots to blobs are files like others, only their directory's name, a commit, says nothing to people.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

from modelhub.found import Found

MAX_MANIFEST = 1 << 20
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_SNAPSHOT = re.compile(r"(?:^|/)(?:models|datasets|spaces)--([^/]+)/snapshots/[^/]+(?:/(.*/)?[^/]+)?$")


def blobs_of(manifest: str, blobs: str) -> list[str]:
    """The names of the blobs in ``blobs`` that hold the weights which the file ``manifest`` names; empty where it is no
    manifest."""
    try:
        with open(manifest, "rb") as file:
            data = json.loads(file.read(MAX_MANIFEST))
        layers = [layer for layer in data["layers"] if str(layer["mediaType"]).endswith((".model", ".adapter", ".projector"))]
        digests = [match[1] for layer in layers if (match := _DIGEST.fullmatch(str(layer["digest"])))]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = [f"sha256-{digest}" for digest in digests]
    return [name for name in names if os.path.isfile(os.path.join(blobs, name))]


def manifest_name(relative: str) -> str:
    """What its users call the model of a manifest, given the manifest's path below ``manifests``: host and owner where they are
    not the usual."""
    host, _, rest = relative.partition("/")
    parts = (rest or host).split("/")
    if parts[0] == "library" and len(parts) > 1:
        parts = parts[1:]
    name = "/".join(parts[:-1]) + ":" + parts[-1] if len(parts) > 1 else parts[0]
    return name if host.startswith("registry.") or not rest else f"{host}/{name}"


def as_manifest(found: Found, manifest: str, name: str, size: int) -> Found:
    """A blob's checkpoint as the model that a manifest makes of it."""
    return replace(found, path=manifest, name=name, files=(*found.files, manifest), size=found.size + size)


def behind(manifest: str) -> tuple[str, str] | None:
    """The blob that the manifest at this absolute path names, and what its users call the model; None where it is no manifest of
    a store."""
    start = manifest.find("/manifests/")
    while start >= 0:
        blobs = manifest[:start] + "/blobs"
        weights = blobs_of(manifest, blobs) if os.path.isdir(blobs) else []
        if weights:
            return os.path.join(blobs, weights[0]), manifest_name(manifest[start + len("/manifests/") :])
        start = manifest.find("/manifests/", start + 1)
    return None


def named(found: Found) -> Found:
    """A checkpoint by the name that people know, where it is a snapshot of a repository, or a file or directory in one: the
    repository's, and what comes below it (``org/repository/onnx/model``)."""
    match = _SNAPSHOT.search(found.path)
    if not match:
        return found
    repository = match[1].replace("--", "/")
    if "/" not in found.path[found.path.rindex("/snapshots/") + len("/snapshots/") :]:
        return replace(found, name=repository) if found.name == os.path.basename(found.path) else found
    if found.name.startswith(f"{repository}/"):
        return found
    return replace(found, name=f"{repository}/{match[2] or ''}{found.name}")
