"""NumPy's files for modelhub: `.npz` archives, read and written, and single arrays in `.npy`. Nothing is unpickled.

An archive is a checkpoint. A single array may be a model's matrix, or one of a million samples of a data set: see
`modelhub_numpy.detect`.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_numpy.detect import detect_npy, detect_npz
from modelhub_numpy.header import DTYPES, MAGIC
from modelhub_numpy.reader import read_npy, read_npz
from modelhub_numpy.writer import create_npz


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="npz",
        title="NumPy archive",
        suffixes=(".npz",),
        dtypes=tuple(dtype for dtype in DTYPES.values() if dtype != "BF16"),
        extension=".npz",
        detect=detect_npz,
        read=read_npz,
        create=create_npz,
    )
    yield Format(name="npy", title="NumPy array", suffixes=(".npy",), magics=(MAGIC,), detect=detect_npy, read=read_npy)
