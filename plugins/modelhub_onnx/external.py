"""External data: the files beside a model that hold its tensors' bytes, and which of them may be opened.

A location is a relative path below the model's directory (onnx ``docs/ExternalData.md``). Whoever wrote the model chose it, so
it is checked before anything is opened: no absolute path, no ``..``, no link out of the directory.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat as stat_module
from dataclasses import dataclass, field

from modelhub import File, InvalidFile

MAX_LOCATION = 4096
MAX_FILES = 10_000
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(slots=True)
class Externals:
    """The external files of one model. ``files``: absolute path -> size, of those that are there; ``missing``: locations of those
    that are not."""

    model: File
    files: dict[str, int] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)

    def path(self, location: str, tensor: str) -> str:
        """The absolute path of ``location``, checked; "" where the file is not there (it is noted as missing)."""
        found = self._paths.get(location)
        if found is None:
            if len(self._paths) >= MAX_FILES:
                raise InvalidFile(f"{self.model.name}: external data in more than {MAX_FILES} files")
            found = self._paths[location] = self._check(location, f"{self.model.name}: tensor {tensor[:200]!r}")
        return found

    def _check(self, location: str, who: str) -> str:
        parts = location.replace("\\", "/").split("/")
        shown = repr(location[:200])
        if not location or len(location) > MAX_LOCATION or "\0" in location or location.endswith("/"):
            raise InvalidFile(f"{who}: external data in {shown}, which is no name of a file")
        if location.startswith(("/", "\\")) or _DRIVE.match(location):
            raise InvalidFile(f"{who}: external data in {shown}: an absolute path is not followed")
        if ".." in parts:
            raise InvalidFile(f"{who}: external data in {shown}, which leads out of the model's directory")
        directory = os.path.dirname(self.model.path)
        name = posixpath.normpath(location)
        path = os.path.join(directory, name)
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):
                self._check_link(path, directory, f"{who}: external data in {shown}")
            self.missing[name] = None
            return ""
        if os.path.samestat(info, os.stat(self.model.path)):
            raise InvalidFile(f"{who}: external data in {shown}, which is the model itself")
        if not stat_module.S_ISREG(info.st_mode):
            raise InvalidFile(f"{who}: external data in {shown}, which is not a regular file")
        self._check_link(path, directory, f"{who}: external data in {shown}")
        if info.st_nlink > 1:
            self._check_hard_links(path, info, f"{who}: external data in {shown}")
        self.files[path] = info.st_size
        return path

    def _check_link(self, path: str, directory: str, who: str) -> None:
        """Where a link leads must lie in the model's directory: in the one that it was opened in, or in the one that the model's
        own link leads to (a Hugging Face cache links all files of a snapshot to one directory of blobs)."""
        real = os.path.realpath(path)
        homes = {os.path.realpath(directory), os.path.dirname(os.path.realpath(self.model.path))}
        if not any(real.startswith(home.rstrip("/") + "/") for home in homes):
            raise InvalidFile(f"{who}, a link to {real}, out of the model's directory: copy the file to where the link is")

    def _check_hard_links(self, path: str, info: os.stat_result, who: str) -> None:
        """A file's other names cannot be followed; but all of them may be seen to stand in the same directory."""
        with os.scandir(os.path.dirname(os.path.realpath(path))) as entries:
            same = sum(1 for entry in entries if entry.inode() == info.st_ino)
        if same < info.st_nlink:
            raise InvalidFile(
                f"{who}, a hard link with {info.st_nlink - same} more names out of its directory: onnx and onnxruntime refuse "
                "such files; copy it"
            )
