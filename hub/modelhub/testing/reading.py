"""The conformance kit, first part: honest files are detected, and their tables say what the library wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modelhub import dtypes, plugins
from modelhub.testing.kit import Arrays, Kit, numpy_dtype, require, sample

ODD_NAMES = (
    "weight",
    "a.b.c",
    "with space",
    "ünï.çødé",
    "日本",
    "🙂",
    "a/b",
    "../up",
    "quo'te\"d",
    "new\nline",
    "%s{0}",
    "x" * 300,
)
HEADER_BYTES = 512 * 1024
"""The most that reading the table of one large tensor may take from the disk."""


class Reading(Kit):
    def test_the_declaration_is_complete(self) -> None:
        subject = self.subject
        report = plugins.get().plugin_of("format", self.format)
        assert report.status in ("ok", "partial"), f"the plugin is listed as {report.status}: {report.reason}"
        assert subject.title, "Format.title is what people see in `modelhub plugins`"
        assert subject.detect or subject.detect_directory, "a format needs detect or detect_directory, or no file is ever its own"
        assert subject.read or "read" in subject.unavailable, "a format needs read, or unavailable={'read': 'what is missing'}"
        assert subject.dtypes or self.library_dtypes or not subject.tensors, (
            "Format.dtypes: name what the format can store. Where that is up to the container that its tensors lie in, and your "
            "plugin writes none, leave it empty, and name in library_dtypes what write() is to be asked for"
        )
        assert subject.dtypes or not subject.create, "Format.dtypes: a format with create names what it can store"
        for name in subject.dtypes:
            assert dtypes.find(name), f"Format.dtypes names {name!r}, which is no registered dtype (modelhub.dtypes.all_dtypes())"
        if subject.create and subject.detect:
            assert subject.extension, "a format with create needs an extension: what the name of its output ends in"
            assert not subject.suffixes or subject.extension.endswith(subject.suffixes), (
                f"outputs end in {subject.extension!r}, which is none of the suffixes {subject.suffixes!r}: they would "
                "not be recognised"
            )
        for name in self.library_dtypes or () if subject.dtypes else ():
            assert name in subject.dtypes, f"library_dtypes names {name!r}, which Format.dtypes does not"

    def test_a_real_file_is_detected_and_described(self, tmp_path: Path) -> None:
        tensors = self.samples()
        path = self.written(tmp_path, tensors)
        found = self.look(path)
        self.check_equal(found, tensors)
        assert found.claims[0].format == self.format
        assert found.size == sum(os.path.getsize(name) for name in found.files)
        assert found.parameters == sum(array.size for array in tensors.values())
        alone = self.look_around(path if self.is_directory else path.parent)
        assert len(alone.found) == 1, f"one checkpoint was written, {len(alone.found)} are found"
        assert self.look(path) == found, "two looks at one file must say the same"

    def test_a_magic_number_is_enough(self, tmp_path: Path) -> None:
        require(self.subject.magics and not self.is_directory, "declares no magic number")
        path = self.written(tmp_path, self.samples())
        renamed = path.with_name("renamed.thing")
        path.rename(renamed)
        if any(renamed.read_bytes().startswith(magic) for magic in self.subject.magics):
            self.check_equal(self.look(renamed), self.samples(), "a file without its suffix")

    def test_every_declared_dtype(self, tmp_path: Path) -> None:
        for name in self.subject.dtypes if self.library_dtypes is None else self.library_dtypes:
            known = numpy_dtype(dtypes.get(name))
            if known is None:
                continue
            tensors = self.possible({"values": sample(known, (3, 7)), "more": sample(known, (2,), 1)})
            path = self.place(tmp_path, name.lower())
            try:
                self.write(path, tensors)
            except Exception as error:
                hint = "if its library cannot write it, set library_dtypes"
                raise AssertionError(f"write() failed for {name}, which Format.dtypes names; {hint}: {error}") from error
            self.check_equal(self.look(path), tensors, name)

    def test_shapes_of_every_kind(self, tmp_path: Path) -> None:
        require(self.subject.tensors, "declares that it has no tensors")
        kind = self._kind()
        base = sample(kind, (6, 5, 4), 3)
        tensors: Arrays = {
            "scalar": sample(kind, ()),
            "one": sample(kind, (1,)),
            "empty": np.zeros((0,), kind),
            "zero_rows": np.zeros((0, 4), kind),
            "zero_columns": np.zeros((3, 0), kind),
            "deep": sample(kind, (2, 1, 3, 1, 2)),
            "fortran": np.asfortranarray(sample(kind, (5, 7))),
            "transposed": base.transpose(2, 0, 1),
            "last": sample(kind, (9,)),
        }
        tensors = self.some(tensors)
        self.check_equal(self.look(self.written(tmp_path, tensors)), tensors)

    def test_odd_names(self, tmp_path: Path) -> None:
        require(self.subject.tensors, "declares that it has no tensors")
        kind = self._kind()
        stored = 0
        for number, name in enumerate(ODD_NAMES):
            tensors = self.some({name: sample(kind, (3,), number)})
            path = self.place(tmp_path, f"odd{number}")
            try:
                self.write(path, tensors)
            except Exception:
                if name == "weight":
                    raise
                continue  # a name that the library refuses is none that its files can hold
            stored += 1
            self.check_equal(self.look(path), tensors, f"a tensor called {name!r}")
        assert stored

    def test_many_tensors(self, tmp_path: Path) -> None:
        require(self.subject.tensors, "declares that it has no tensors")
        kind = self._kind()
        tensors = self.some({f"layers.{number}.weight": sample(kind, (number % 7, 3), number) for number in range(400)})
        self.check_equal(self.look(self.written(tmp_path, tensors)), tensors)

    def test_weights_are_not_read(self, tmp_path: Path) -> None:
        require(self.subject.tensors, "declares that it has no tensors")
        kind = self._kind()
        path = self.written(tmp_path, self.some({"large": np.zeros((1 << 14, (1 << 10) // kind.itemsize), kind)}))
        self.look(path)  # whatever is loaded or cached on first use
        before = bytes_read()
        found = self.look(path)
        taken = bytes_read() - before
        assert found.size > 8 << 20 or self._compressed(path), "the file is smaller than its tensor"
        assert taken <= HEADER_BYTES, f"reading the table took {taken} bytes of a file of {found.size}: read headers, not weights"

    def test_files_of_others_are_not_claimed(self, tmp_path: Path) -> None:
        strangers = {
            "notes.txt": b"These are not the weights you are looking for.\n" * 20,
            "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
            "config.json": b'{"a": 1}',
            "empty": b"",
            "data.xyz": bytes(5000),
        }
        for name, data in strangers.items():
            (tmp_path / name).write_bytes(data)
        for found in self.look_around(tmp_path).found:
            claims = [claim.format for claim in found.claims]
            assert self.format not in claims, f"detect() claims {os.path.basename(found.path)}, which is nothing of the kind"

    def _kind(self) -> np.dtype[np.generic]:
        kinds = self.numpy_dtypes()
        assert kinds, "none of the declared dtypes is one that NumPy has: set library_dtypes"
        return kinds[0]

    def _compressed(self, path: Path) -> bool:
        files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
        return sum(item.stat().st_size for item in files if item.is_file()) < 8 << 20


def bytes_read() -> int:
    """What this process has read so far."""
    with open("/proc/self/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])
