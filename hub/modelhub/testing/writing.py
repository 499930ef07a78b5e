"""The conformance kit, third part, for formats with ``create``: what is written is read back, by the plugin and by the
library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelhub import dtypes
from modelhub.engine import read_tensor, write_checkpoint
from modelhub.errors import ModelhubError
from modelhub.table import Table
from modelhub.testing.kit import Kit, dtype_name, no_plugin_failure, require, sample
from modelhub.testing.reading import ODD_NAMES
from modelhub.types import Inline, Tensor, WriteOptions


class Writing(Kit):
    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        self._needs_create()
        tensors = self.samples()
        output = self._create(tmp_path, self._table(tmp_path), "output")
        self.check_equal(self.look(output), tensors, "what create() wrote")
        opened = self.read(output)
        if opened is not None:
            assert set(opened) == set(tensors), f"the library finds {sorted(opened)} in what create() wrote"
            for name, array in tensors.items():
                same = opened[name].dtype == array.dtype and opened[name].shape == array.shape
                assert same, f"the library reads {name!r} as {opened[name].dtype} {opened[name].shape}"
                assert opened[name].tobytes() == array.tobytes(), f"the library reads other values of {name!r}"

    def test_writing_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        self._needs_create()
        table = self._table(tmp_path)
        first, second = (self._create(tmp_path / side, table, "output") for side in "ab")
        for one, other in zip(self._all_files(first), self._all_files(second), strict=True):
            assert one.name == other.name
            assert one.read_bytes() == other.read_bytes(), f"{one.name} differs from run to run: no clocks, no random ids"

    def test_every_declared_dtype_can_be_written(self, tmp_path: Path) -> None:
        self._needs_create()
        source = self._table(tmp_path)
        for name in self.subject.dtypes:
            dtype = dtypes.get(name)
            shape = (2, dtype.block * 2)
            data = bytes(number % (2 if dtype.kind == "bool" else 251) for number in range(dtype.nbytes(shape)))
            tensors = Tensor("t", name, shape, Inline(data)), Tensor("b", name, (dtype.block,), Inline(data[: dtype.block_bytes]))
            table = replace(source, tensors=tensors)
            found = self.look(self._create(tmp_path, table, name.lower()))
            assert found.state == "ready", f"a file of {name} is {found.state}: {found.reason}"
            tensor = found.load_table().by_name["t"]
            assert (tensor.dtype, tensor.shape) == (name, shape), f"{name} {shape} is read back as {tensor.dtype} {tensor.shape}"
            assert read_tensor(tensor).tobytes() == data, f"{name} is read back with other bytes"

    def test_odd_tensors_are_written_or_refused(self, tmp_path: Path) -> None:
        self._needs_create()
        kinds = self.numpy_dtypes() or [np.dtype("<f4")]
        arrays = {"scalar": sample(kinds[0], ()), "empty": np.zeros((0, 3), kinds[0]), "many": sample(kinds[0], (3,) * 5)}
        arrays.update({name: sample(kinds[0], (2,), number) for number, name in enumerate(ODD_NAMES)})
        source = self._table(tmp_path)
        for number, (name, array) in enumerate(arrays.items()):
            table = replace(source, tensors=(inline(name, array),))
            try:
                output = self._create(tmp_path, table, f"odd{number}")
            except ModelhubError:
                assert name not in ("weight", "scalar"), f"create() refuses {name!r}"
                continue
            self.check_equal(self.look(output), {name: array}, f"a file with {name!r}")

    def test_metadata_is_kept_whole(self, tmp_path: Path) -> None:
        self._needs_create()
        stored = {"note": 'ünïcode, "quotes"\nand lines', "license": "apache-2.0", "empty": ""}
        table = self._table(tmp_path)
        table = replace(table, metadata=replace(table.metadata, stored={**table.metadata.stored, **stored}))
        found = self.look(self._create(tmp_path, table, "output"))
        kept = {name: text for name, text in found.stored.items() if name in stored}
        assert not kept or kept == stored, f"of the texts {stored} only {kept} are read back: keep all of them or none"

    def test_ties_are_kept(self, tmp_path: Path) -> None:
        self._needs_create()
        require(self.subject.sharing != "none", "declares that tensors share no bytes")
        source = self._table(tmp_path)
        first = source.logical[0]
        table = replace(source, tensors=(first, first._replace(name="tied.weight")))
        found = self.look(self._create(tmp_path, table, "output"))
        assert set(found.load_table().by_name) == {first.name, "tied.weight"}
        assert found.load_table().ties, "two tensors with the same value are no longer tied"
        assert found.parameters == int(np.prod(first.shape))

    def test_shards_are_one_checkpoint(self, tmp_path: Path) -> None:
        self._needs_create()
        kind = (self.numpy_dtypes() or [np.dtype("<f4")])[0]
        arrays = {f"layers.{number}.weight": sample(kind, (64, 8), number) for number in range(12)}
        table = self._table(tmp_path, (inline(name, array) for name, array in arrays.items()))
        output = self._create(tmp_path, table, "output", max_shard_size=3 * 64 * 8 * kind.itemsize)
        inspection = self.look_around(output if self.is_directory else output.parent)
        no_plugin_failure(inspection, "what create() wrote in shards")
        assert len(inspection.found) == 1, f"{len(inspection.found)} checkpoints were written: shards must be detected as one"
        self.check_equal(inspection.found[0], arrays, "what create() wrote in shards")

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _needs_create(self) -> None:
        require(self.subject.create, "declares no create")

    def _table(self, directory: Path, tensors: Iterable[Tensor] | None = None) -> Table:
        """The table of a real checkpoint, its metadata and files included; with other ``tensors`` where they are given."""
        table = self.look(self.written(directory, self.samples(), "source")).load_table()
        return table if tensors is None else replace(table, tensors=tuple(tensors))

    def _create(self, directory: Path, table: Table, name: str, max_shard_size: int = 0) -> Path:
        folder = directory / f"created-{name}"
        folder.mkdir(parents=True)
        output = folder / (name + self.subject.extension)
        write_checkpoint(self.subject, table, str(output), WriteOptions(name=name, max_shard_size=max_shard_size), sync=False)
        return output

    def _all_files(self, output: Path) -> list[Path]:
        root = output if output.is_dir() else output.parent
        return sorted(path for path in root.rglob("*") if path.is_file())


def inline(name: str, array: NDArray[Any]) -> Tensor:
    return Tensor(name, dtype_name(array), array.shape, Inline(array.tobytes()))
