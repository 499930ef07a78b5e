"""Downloads that did not come to their end: what is there is one incomplete checkpoint, so that its owner sees what takes the
space.

The cache keeps a file that is on its way as ``blobs/ETAG.incomplete``, and links it into the snapshot when it is whole; a
download into a directory keeps it in ``.cache/huggingface/download``, beside a lock with the file's name (huggingface_hub
``file_download.py``, ``_local_folder.py``). A link whose blob was taken away leads nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from modelhub import Detection, File, FileProblem, Listing

CACHED = "models--"
UNFINISHED = ".incomplete"
DOWNLOADS = ".cache/huggingface/download"
MAX_NAMES = 1000
_WEIGHTS = re.compile(r".+\.(safetensors|bin|gguf|onnx|pt|pth|ckpt|h5|msgpack|npz|tflite|model)")


def interrupted(listing: Listing, belongs: Callable[[str], bool], repository: str) -> Detection | None:
    """What is missing of the directory's weights, where their download says so. ``belongs(name)``: whether a file would be the
    checkpoint's; ``repository``: its name where the directory is a snapshot in a cache."""
    if not repository and ".cache" not in listing.directories:
        return _of_nothing(listing) if listing.name == "refs" else None
    documents = sorted(filter(belongs, listing.files), key=lambda name: name != "config.json")
    missing = (_of_cache(listing) if repository else _of_directory(listing)) if documents else []
    if not missing:
        return None
    return Detection([listing.join(name) for name in documents], confidence=96, missing=missing, name=repository)


def _of_cache(listing: Listing) -> list[str]:
    lost = [f"{name} (a link to a blob that is not there)" for name in _links(listing.path) if name not in listing]
    home = os.path.dirname(os.path.dirname(listing.path))
    return lost + (_unfinished(os.path.join(home, "blobs"), "blobs") if _is_current(home, listing.name) else [])


def _of_nothing(listing: Listing) -> Detection | None:
    """A repository of which nothing is whole yet: the ref to its revision is the only file that there is."""
    home = os.path.dirname(listing.path)
    if not os.path.basename(home).startswith(CACHED) or not listing.files:
        return None
    snapshots = os.path.join(home, "snapshots")
    if any(_names(os.path.join(snapshots, revision)) for revision in _names(snapshots)):
        return None
    missing = _unfinished(os.path.join(home, "blobs"), "blobs")
    repository = os.path.basename(home).removeprefix(CACHED).replace("--", "/")
    files = [listing.join(name) for name in listing.files]
    return Detection(files, confidence=96, missing=missing, name=repository) if missing else None


def _of_directory(listing: Listing) -> list[str]:
    place = listing.join(DOWNLOADS)
    unfinished = _unfinished(place, DOWNLOADS)
    if not unfinished:
        return []
    names = {name.removesuffix(".lock") for name in _names(place) if name.endswith(".lock")}
    waiting = sorted(name for name in names if name not in listing and _WEIGHTS.fullmatch(name))
    return [f"{name} (its download has not ended)" for name in waiting] or unfinished


def _unfinished(directory: str, shown: str) -> list[str]:
    found = []
    for name in sorted(_names(directory)):
        if name.endswith(UNFINISHED):
            try:
                size = os.stat(os.path.join(directory, name)).st_size
            except OSError:
                continue
            found.append(f"a file whose download has not ended ({shown}/{name}, {size:,} bytes)")
    return found


def _is_current(home: str, revision: str) -> bool:
    """Whether what is being downloaded is of this revision: it is the only one, or a ref names it."""
    if len(_names(os.path.join(home, "snapshots"))) < 2:
        return True
    refs = os.path.join(home, "refs")
    for name in _names(refs):
        try:
            with File(os.path.join(refs, name)) as file:
                if file.head[:64].strip() == revision.encode("utf-8", "surrogateescape"):
                    return True
        except (OSError, FileProblem):
            continue
    return False


def _links(directory: str) -> list[str]:
    """The names of links in ``directory`` that lead nowhere."""
    try:
        with os.scandir(directory) as entries:
            links = [entry for entry in entries if entry.is_symlink()]
    except OSError:
        return []
    return sorted(link.name for link in links if _WEIGHTS.fullmatch(link.name) and not os.path.exists(link.path))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)[:MAX_NAMES]
    except OSError:
        return []
