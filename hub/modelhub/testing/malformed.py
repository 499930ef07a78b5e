"""The conformance kit, second part: whatever is done to a file, the plugin says what is wrong with it, soon, and nothing
worse."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelhub import dtypes
from modelhub.detect import Inspection
from modelhub.engine import read_tensor
from modelhub.errors import ModelhubError
from modelhub.found import Found
from modelhub.testing.kit import Kit, no_plugin_failure, require
from modelhub.types import Extent

FLIPS = 200
CUTS = 60


class MalformedFiles(Kit):
    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        for file, data, path in self._files(tmp_path):
            whole = len(data)
            cuts = {*range(min(whole, 24)), whole // 2, *(whole - n for n in (1, 2, 4, 8, 16, 22, 64) if n <= whole)}
            cuts.update(random.Random(1).randrange(whole) for _ in range(CUTS))
            for cut in sorted(cuts):
                what = f"{file.name} cut to {cut} of {whole} bytes"
                file.write_bytes(data[:cut])
                inspection = self._survives(path, what)
                mine = self._mine(inspection, path)
                if mine is None:
                    assert cut < max(64, whole // 2), (
                        f"{what} is taken for a file of no known format: detect() should answer Rejected, or claim it and "
                        "let read() fail"
                    )
                    continue
                sound = mine.state != "ready" or all(self._same(mine, data, path, file))
                assert sound, f"{what} is called ready: raise IncompleteFile where the file ends before what its header declares"
            file.write_bytes(data)

    def test_flipped_bytes(self, tmp_path: Path) -> None:
        for file, data, path in self._files(tmp_path):
            chance = random.Random(2)
            for number in range(FLIPS):
                broken = bytearray(data)
                for _ in range(chance.choice((1, 1, 2, 8))):
                    # Headers stand at the start and the end: most of the damage is done there.
                    at = chance.choice(
                        (
                            chance.randrange(min(512, len(data))),
                            chance.randrange(len(data)),
                            -1 - chance.randrange(min(512, len(data))),
                        )
                    )
                    broken[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
                file.write_bytes(broken)
                inspection = self._survives(path, f"{file.name} with broken bytes (round {number} of seed 2)")
                for found in inspection.found:
                    self._readable(found)
            file.write_bytes(data)

    def test_strange_content_under_its_name(self, tmp_path: Path) -> None:
        require(not self.is_directory, "is a directory's format")
        noise = random.Random(3).randbytes(4096)
        starts = [b"", *self.subject.magics]
        real = self.written(tmp_path, self.samples(), "real").read_bytes()
        contents = [b"", b"\0", bytes(1024), bytes(200_000), b"\xff" * 4096, noise, b"{}", b"text\n", real[:8] + b"\xff" * 64]
        for number, content in enumerate([start + content for start in starts for content in contents]):
            path = self.place(tmp_path, f"strange{number}")
            path.write_bytes(content)
            what = f"a file of {len(content)} bytes that starts with {content[:12]!r}"
            inspection = self._survives(path, what)
            for found in inspection.found:
                if found.format == self.format:
                    assert found.state != "ready", f"{what} is called ready, with {found.tensors} tensors"

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _files(self, directory: Path) -> Iterator[tuple[Path, bytes, Path]]:
        """Each file of a real checkpoint, with its bytes, and the checkpoint's place."""
        path = self.written(directory, self.samples(), "malformed")
        for name in self.look(path).files:
            yield Path(name), Path(name).read_bytes(), path
        if path.is_dir():
            shutil.rmtree(path)

    def _survives(self, path: Path, what: str) -> Inspection:
        inspection = self.look_around(path if self.is_directory else path.parent)
        no_plugin_failure(inspection, what)
        return inspection

    def _mine(self, inspection: Inspection, path: Path) -> Found | None:
        return next((found for found in inspection.found if found.path == str(path)), None)

    def _same(self, found: Found, data: bytes, path: Path, file: Path) -> Iterator[bool]:
        """Whether a shortened file that is called ready has lost nothing but bytes that belong to no tensor."""
        size = os.path.getsize(file)
        names = set()
        for tensor in found.load_table().tensors:
            names.add(tensor.name)
            if isinstance(tensor.value, Extent) and tensor.value.file == str(file):
                yield tensor.value.offset + tensor.value.nbytes <= size
        yield names == set(self.samples())

    def _readable(self, found: Found) -> None:
        """What is called ready can be read, or is refused in words."""
        if found.state != "ready":
            return
        for tensor in found.load_table().tensors:
            if tensor.value is None:
                continue
            try:
                if dtypes.get(tensor.dtype).nbytes(tensor.shape) <= 1 << 20:
                    read_tensor(tensor)
            except ModelhubError:
                continue
