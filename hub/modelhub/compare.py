"""Two tensors side by side: equal to the byte, or how far apart. Used by ``diff``, by a conversion's read-back, and by ``verify
--against``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.codecs import codec_of
from modelhub.declared import Conversion
from modelhub.engine.errors import ErrorSums
from modelhub.engine.values import CHUNK, Handles, pread_into, tensor_chunks
from modelhub.engine.write import PIECE
from modelhub.errors import ModelhubError
from modelhub.table import Table
from modelhub.types import Extent, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelhub.model import Model
    from modelhub.plugins import Plugins

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One name in both tables. ``same``: dtype, shape and every byte. ``why``: what keeps the two from being compared, or "".
    ``errors``: how far B is from A, where both decode and their shapes agree."""

    name: str
    same: bool
    a: Tensor
    b: Tensor
    why: str = ""
    errors: ErrorSums | None = None

    def to_json(self) -> dict[str, Any]:
        figures = self.errors.to_json() if self.errors else {}
        figures.pop("overflow", None)
        return {
            "name": self.name,
            "same": self.same,
            "dtype_a": self.a.dtype,
            "dtype_b": self.b.dtype,
            "shape_a": list(self.a.shape),
            "shape_b": list(self.b.shape),
            **({"reason": self.why} if self.why else {}),
            **figures,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Two tables joined by name."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]

    @property
    def equal(self) -> bool:
        return not self.only_a and not self.only_b and all(tensor.same for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def whole_table(model: Model) -> Table:
    """The table of a model that is all there. What could not be read has no tensors, or some of them: two such models would be
    called equal. Raises ModelhubError."""
    if model.state != "ready":
        why = f": {model.reason}" if model.reason else ""
        raise ModelhubError(f"{model.name} cannot be compared: it is {model.state}{why}", "`modelhub verify` says more")
    return model.table()


def comparable(a: Model, b: Model, plugins: Plugins) -> tuple[Table, Table, str]:
    """The tables of two models, and "". Where they have no name in common and a declared conversion leads from one's format to
    the other's, that one's tensors stand as the conversion would have them, and the third is the format whose names they bear. Of
    several ways it takes one that leaves alone what is quantized, and the one that leaves the fewest tensors without a
    counterpart; a conversion that refuses is no way. Raises ModelhubError, as `whole_table` does."""
    left, right = whole_table(a), whole_table(b)
    if left.by_name.keys() & right.by_name.keys():
        return left, right, ""
    ways = [(left, as_a, a.format) for as_a in _derived(b, right, a, plugins)]
    ways += [(as_b, right, b.format) for as_b in _derived(a, left, b, plugins)]

    def unlike(way: tuple[Table, Table, str]) -> tuple[int, int, int]:
        one, other, _ = way
        lost = sum(_quantized(was) and not _quantized(now) for was, now in ((left, one), (right, other)))
        return (
            lost,
            len(one.by_name.keys() ^ other.by_name.keys()),
            sum(name in other.by_name and other.by_name[name].dtype != tensor.dtype for name, tensor in one.by_name.items()),
        )

    fitting = [way for way in ways if way[0].by_name.keys() & way[1].by_name.keys()]
    return min(fitting, key=unlike, default=(left, right, ""))


def _derived(model: Model, table: Table, other: Model, plugins: Plugins) -> Iterator[Table]:
    """What conversions make of a model in the format of the other."""
    for edge in plugins.conversions:
        if not isinstance(edge, Conversion) or edge.source == edge.target:
            continue
        if edge.target == other.format and edge.source in (model.format, model.container):
            with suppress(ModelhubError):
                yield edge.derive([table], {})


def _quantized(table: Table) -> bool:
    return any(dtypes.get(tensor.dtype).kind == "quantized" for tensor in table.by_name.values())


def compare_tables(a: Table, b: Table, *, measure: bool = True, progress: Progress | None = None) -> Difference:
    """Compare the logical tensors of two tables by name. Without ``measure``, errors of tensors that differ are not computed."""
    import os

    left, right = a.by_name, b.by_name
    names = [name for name in left if name in right]
    with Handles() as handles, ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def one(name: str) -> TensorDifference:
            return compare_tensors(left[name], right[name], handles, measure=measure, progress=progress)

        tensors = tuple(pool.map(one, names))
        handles.check_unchanged()
    only_a = tuple(name for name in left if name not in right)
    return Difference(only_a, tuple(name for name in right if name not in left), tensors)


def compare_tensors(
    a: Tensor, b: Tensor, handles: Handles, *, measure: bool = True, progress: Progress | None = None
) -> TensorDifference:
    """Compare two tensors: bytes first, values where those differ."""
    if a.value is None or b.value is None:
        missing = a if a.value is None else b
        return TensorDifference(a.name, False, a, b, f"{missing.unsupported or 'its value'} cannot be read")
    if a.shape != b.shape:
        return TensorDifference(a.name, False, a, b, "the shapes differ")
    if a.dtype == b.dtype and equal_bytes(a, b, handles, progress):
        return TensorDifference(a.name, True, a, b)
    if not measure:
        return TensorDifference(a.name, False, a, b)
    return TensorDifference(a.name, False, a, b, errors=measure_difference(a, b, handles))


def equal_bytes(a: Tensor, b: Tensor, handles: Handles, progress: Progress | None = None) -> bool:
    """Whether two tensors of one dtype and shape hold the same bytes. Stops at the first difference."""
    if a.value == b.value:
        return True
    if isinstance(a.value, Extent) and isinstance(b.value, Extent):
        return _equal_extents(a.value, b.value, handles, progress)
    import numpy as np

    left, right = tensor_chunks(a, handles), tensor_chunks(b, handles)
    with closing(_aligned(left, right)) as pairs:  # type: ignore[type-var]
        for x, y in pairs:
            if not np.array_equal(x, y):
                return False
            if progress:
                progress(len(x))
    return True


def _equal_extents(a: Extent, b: Extent, handles: Handles, progress: Progress | None) -> bool:
    if a.nbytes != b.nbytes:
        return False
    import numpy as np

    step = min(CHUNK // 4, max(1, a.nbytes))
    left, right = np.empty(step, np.uint8), np.empty(step, np.uint8)
    fd_a, fd_b = handles.fd(a.file), handles.fd(b.file)
    for start in range(0, a.nbytes, step):
        n = min(step, a.nbytes - start)
        pread_into(fd_a, left.data[:n], a.offset + start, a.file)
        pread_into(fd_b, right.data[:n], b.offset + start, b.file)
        if not np.array_equal(_words(left[:n]), _words(right[:n])):
            return False
        if progress:
            progress(n)
    return True


def _words(data: NDArray[np.uint8]) -> NDArray[Any]:
    return data.view("u8") if len(data) % 8 == 0 else data


def _aligned(left: Iterator[NDArray[Any]], right: Iterator[NDArray[Any]]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Two streams of arrays cut to pieces of equal length. Both must be equally long in all."""
    import numpy as np

    x = y = np.empty(0, np.uint8)
    while True:
        if not len(x):
            x = next(left, np.empty(0, np.uint8))
        if not len(y):
            y = next(right, np.empty(0, np.uint8))
        n = min(len(x), len(y))
        if not n:
            return
        yield x[:n], y[:n]
        x, y = x[n:], y[n:]


def measure_difference(a: Tensor, b: Tensor, handles: Handles) -> ErrorSums:
    """How far ``b`` is from ``a``, element by element, both decoded."""
    sums = ErrorSums()
    left, right = _decoded(a, handles), _decoded(b, handles)
    for x, y in _aligned(left, right):
        sums.take(x, y)
    return sums


def _decoded(tensor: Tensor, handles: Handles) -> Iterator[NDArray[Any]]:
    import numpy as np

    dtype, codec = dtypes.get(tensor.dtype), codec_of(tensor.dtype, "decode")
    pending = np.empty(0, np.uint8)
    for chunk in tensor_chunks(tensor, handles):
        data = np.concatenate((pending, chunk)) if len(pending) else chunk
        whole = len(data) // dtype.block_bytes * dtype.block_bytes
        data, pending = data[:whole], data[whole:]
        if whole:
            yield codec.decode(data, whole // dtype.block_bytes * dtype.block)


def equal_tables(pairs: Sequence[tuple[Tensor, Tensor]], *, threads: int | None = None) -> list[str]:
    """Names of the pairs whose bytes differ: the read-back of a conversion. Large extents are split among threads."""
    import os

    differ: dict[str, None] = {}
    with Handles() as handles, ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:

        def one(pair: tuple[Tensor, Tensor]) -> bool:
            return equal_bytes(*pair, handles)

        pieces = [piece for pair in pairs for piece in _pieces(*pair)]
        for (left, _), same in zip(pieces, pool.map(one, pieces), strict=True):
            if not same:
                differ[left.name] = None
        handles.check_unchanged()
    return list(differ)


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(a.value, Extent) and isinstance(b.value, Extent) and a.value.nbytes == b.value.nbytes:
        for start in range(0, a.value.nbytes, PIECE):
            n = min(PIECE, a.value.nbytes - start)
            yield (
                Tensor(a.name, "U8", (n,), Extent(a.value.file, a.value.offset + start, n)),
                Tensor(b.name, "U8", (n,), Extent(b.value.file, b.value.offset + start, n)),
            )
    elif prod(a.shape):
        yield a, b


def changes(difference: Difference) -> Mapping[str, int]:
    """How many tensors are the same, differ, or stand on one side only."""
    same = sum(tensor.same for tensor in difference.tensors)
    return {
        "same": same,
        "different": len(difference.tensors) - same,
        "only_a": len(difference.only_a),
        "only_b": len(difference.only_b),
    }
