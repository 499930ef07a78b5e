"""What the parts of the conformance kit share: the format under test, sample arrays, comparing a table with what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from modelhub import dtypes, plugins
from modelhub.declared import Format
from modelhub.detect import Inspection, inspect_listing, inspect_path
from modelhub.dtypes import DType
from modelhub.engine import read_tensor
from modelhub.errors import ModelhubError
from modelhub.files import list_directory
from modelhub.found import Found
from modelhub.types import Extent

Arrays = dict[str, NDArray[Any]]

SECONDS = 10.0
"""No header takes longer to read, broken or not."""

_KINDS = {"float": "f", "int": "i", "uint": "u", "bool": "b", "complex": "c"}


def numpy_dtype(dtype: DType) -> np.dtype[Any] | None:
    """The NumPy type whose values are those of ``dtype``; None where NumPy has none (BF16, F8, packed ones)."""
    if not dtype.numpy or dtype.block != 1:
        return None
    candidate = np.dtype(dtype.numpy)
    return candidate if candidate.kind == _KINDS.get(dtype.kind) else None


def dtype_name(array: NDArray[Any]) -> str:
    """modelhub's name of an array's dtype."""
    # NumPy takes None for float64 when it compares, hence the look at str.
    return next(item.name for item in dtypes.all_dtypes() if str(numpy_dtype(item)) == str(array.dtype.newbyteorder("=")))


def sample(dtype: np.dtype[Any], shape: Sequence[int], seed: int = 0) -> NDArray[Any]:
    """Values that use every bit of ``dtype``; floats include the infinities, NaN, both zeros and a denormal."""
    random = np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.kind == "b":
        return (random.integers(0, 2, count) > 0).reshape(shape)
    if dtype.kind == "f":
        values = random.standard_normal(count).astype(dtype)
        special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, np.finfo(dtype).tiny / 4], dtype)
        values[: len(special)] = special[:count]
        return values.reshape(shape)
    return np.frombuffer(random.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


class Kit:
    """The format under test, and what its author says of it."""

    format: ClassVar[str] = ""
    library_dtypes: ClassVar[Sequence[str] | None] = None
    """Those of the declared dtypes that the library behind ``write`` can write; None: all that NumPy has. To be named where the
    format declares none."""

    directory: ClassVar[bool | None] = None
    """Whether ``write`` makes a directory; None: where the format has no ``detect``."""

    scalars: ClassVar[bool] = True
    """Whether the format has tensors without a side."""
    empty: ClassVar[bool] = True
    """Whether the format has tensors without elements."""

    def write(self, path: Path, tensors: Arrays) -> None:
        """Make a real file at ``path``, with a library that is not the plugin under test."""
        raise NotImplementedError(
            f"{type(self).__name__} needs `def write(self, path, tensors)`: make a real file of NumPy arrays"
        )

    def named(self, name: str) -> str:
        """What the format calls the tensor that ``write`` was given as ``name``, where it has a way of its own."""
        return name

    def read(self, path: Path) -> Mapping[str, NDArray[Any]] | None:
        """Open what the plugin wrote with that library; None (not defined) leaves that out."""
        return None

    # --- the format -------------------------------------------------------------------------------------------------

    @property
    def subject(self) -> Format:
        loaded = plugins.get()
        assert self.format, f"{type(self).__name__} needs `format = ...`, the name of your format"
        if self.format not in loaded.formats:
            status = "; ".join(f"{item.name}: {item.status} {item.reason}" for item in loaded.reports if item.status != "ok")
            names = ", ".join(sorted(loaded.formats))
            raise AssertionError(
                f"no plugin declares a format called {self.format!r} (there are: {names}). Is your package installed, with its "
                f"module in the entry-point group 'modelhub'? {status}"
            )
        return loaded.formats[self.format]

    @property
    def is_directory(self) -> bool:
        return self.subject.detect is None if self.directory is None else self.directory

    def numpy_dtypes(self) -> list[np.dtype[Any]]:
        """What of the declared dtypes ``write`` is asked for."""
        names = self.subject.dtypes if self.library_dtypes is None else self.library_dtypes
        found = [numpy_dtype(known) for name in names if (known := dtypes.find(name))]
        return [item for item in found if item is not None]

    def place(self, directory: Path, name: str = "sample") -> Path:
        """Where to write: an own directory, so that nothing else is there."""
        folder = directory / name
        folder.mkdir(parents=True)
        suffix = self.subject.extension or next(iter(self.subject.suffixes), "")
        return folder / (name if self.is_directory else name + suffix)

    def samples(self) -> Arrays:
        """A small state dict in the first dtypes that the format declares."""
        kinds = self.numpy_dtypes() or [np.dtype("<f4")]
        shapes = [(4, 6), (6,), (), (2, 3, 4), (8, 8)]
        return self.possible(
            {
                f"layers.{number}.{'weight' if number % 2 else 'bias'}": sample(kinds[number % len(kinds)], shape, number)
                for number, shape in enumerate(shapes)
            }
        )

    def possible(self, tensors: Arrays) -> Arrays:
        """Those that the format can hold (see `scalars` and `empty`). Override it for one that holds some kinds only (a single
        matrix, for one): the kit then writes, and expects, what is left."""
        if not self.subject.tensors:
            return {}
        return {name: array for name, array in tensors.items() if (array.ndim or self.scalars) and (array.size or self.empty)}

    def some(self, tensors: Arrays) -> Arrays:
        """Those that the format can hold; without any there is nothing to test."""
        found = self.possible(tensors)
        require(found, "holds none of these")
        return found

    def written(self, directory: Path, tensors: Arrays, name: str = "sample") -> Path:
        path = self.place(directory, name)
        self.write(path, tensors)
        assert path.exists(), f"write() made no {path.name}: write to the very path that is given"
        return path

    # --- looking ----------------------------------------------------------------------------------------------------

    def look(self, path: Path) -> Found:
        """What modelhub says of ``path``, which must be this format's."""
        try:
            with self.bounded(f"reading {path.name}"):
                found = inspect_path(str(path), plugins.get().formats)
        except ModelhubError as error:
            raise AssertionError(
                f"{path.name} is not recognised: {error}. Does detect() answer for it, and is it asked? (suffixes="
                f"{self.subject.suffixes!r}, magics={self.subject.magics!r})"
            ) from error
        claims = ", ".join(f"{claim.format} {claim.confidence}" for claim in found.claims)
        assert found.format == self.format, (
            f"{path.name} went to {found.format} (confidences: {claims}). A detect() that looked at the content may say "
            "90 and more"
        )
        return found

    def look_around(self, directory: Path) -> Inspection:
        """What modelhub says of a whole directory; never an exception, never long."""
        with self.bounded(f"reading {directory}"):
            return inspect_listing(list_directory(str(directory)), plugins.get().formats)

    @contextmanager
    def bounded(self, what: str) -> Iterator[None]:
        try:
            with plugins.time_limit(SECONDS):
                yield
        except plugins.TimedOut:
            raise AssertionError(f"{what} took longer than {SECONDS:g} s: bound every loop by the size of the file") from None

    def check_equal(self, found: Found, tensors: Mapping[str, NDArray[Any]], what: str = "") -> None:
        """The table of ``found`` is ``tensors``: names, dtypes, shapes and bytes."""
        what = what or os.path.basename(found.path)
        assert found.state == "ready", f"{what} is {found.state}: {found.reason}"
        tensors = {self.named(name): array for name, array in tensors.items()}
        table = found.load_table().by_name
        lost, extra = sorted(set(tensors) - set(table)), sorted(set(table) - set(tensors))
        assert not lost, f"{what}: these tensors were written and are not in the table: {lost[:5]!r}"
        assert not extra, f"{what}: these tensors are in the table and were not written: {extra[:5]!r}"
        for name, array in tensors.items():
            tensor = table[name]
            want = dtype_name(array)
            assert tensor.dtype == want, f"{what}: {name!r} is {tensor.dtype}, {want} was written"
            assert tensor.shape == array.shape, f"{what}: {name!r} has shape {tensor.shape}, {array.shape} was written"
            assert tensor.value is not None, f"{what}: {name!r} has no value: {tensor.unsupported}"
            data = read_tensor(tensor).tobytes()
            if data != array.tobytes():
                where = tensor.value[1:] if isinstance(tensor.value, Extent) else tensor.value
                at = next(number for number, pair in enumerate(zip(data, array.tobytes(), strict=True)) if pair[0] != pair[1])
                raise AssertionError(f"{what}: {name!r} differs from what was written, from byte {at} on; its value is {where}")


def no_plugin_failure(inspection: Inspection, what: str) -> None:
    """A broken file is a `FileProblem`; any other exception is a bug in the plugin."""
    findings = [item for found in inspection.found for item in found.findings] + inspection.problems
    for finding in findings:
        assert finding.check != "plugin", (
            f"{what}: {finding.message}. On broken input raise modelhub.InvalidFile, IncompleteFile or UnsupportedFile, "
            "nothing else"
        )


def require(capability: Any, why: str) -> None:
    """Skip what the format does not declare."""
    if not capability:
        import pytest

        pytest.skip(why)
