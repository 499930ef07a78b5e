"""Encoding a tensor to another dtype, slice by slice, and measuring the error as it goes.

``ops.cast`` is the node that a recipe puts on top of a tensor's value. It is an op like any other (so that expressions show it
and a cluster can run it), and the writer recognises it on top, to measure and to split it among threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import lcm
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.codecs import codec_of, find
from modelhub.engine.errors import ErrorSums
from modelhub.engine.values import Handles, open_value
from modelhub.errors import ConversionError
from modelhub.types import Node, Tensor, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOSSLESS = {
    ("F16", "F32"), ("F16", "F64"), ("BF16", "F32"), ("BF16", "F64"), ("F32", "F64"),
    ("C64", "C128"), ("C32", "C64"), ("C32", "C128"),
    *((f"F8_{kind}", wide) for kind in ("E4M3", "E5M2", "E4M3FNUZ", "E5M2FNUZ") for wide in ("BF16", "F32", "F64")),
    *((f"F8_{kind}", "F16") for kind in ("E4M3", "E5M2", "E4M3FNUZ")),
    *((kind, wide) for kind in ("F4", "F6_E2M3", "F6_E3M2") for wide in ("F16", "BF16", "F32", "F64")),
}  # fmt: skip
"""Pairs whose every value survives: no error to measure."""


PIECE = 1 << 16
"""Elements that are decoded, encoded and measured in one go, where a dtype does not keep rows together."""


class Encoder:
    """From the bytes of one dtype to those of another, a slice at a time; errors are summed up in ``sums``, where there are.

    ``columns``: the length of the tensor's rows. ``importance``: float32 weights of shape (matrices, columns), or None.
    """

    def __init__(self, name: str, source: str, dtype: str, columns: int, importance: Any, sums: ErrorSums | None) -> None:
        self.name, self.source, self.dtype, self.columns, self.importance = name, source, dtype, columns, importance
        self.have, self.want = dtypes.get(source), dtypes.get(dtype)
        self.decoder, self.encoder = codec_of(source, "decode"), codec_of(dtype, "encode")
        self.sums = sums if sums is not None and (source, dtype) not in LOSSLESS else None

    @property
    def unit(self) -> int:
        """A slice must hold a multiple of so many elements."""
        return self.columns if self.want.rowwise else lcm(self.have.block, self.want.block)

    def encode(self, data: NDArray[np.uint8], matrix: int = 0, first: int = 0) -> NDArray[np.uint8]:
        """The blocks of a slice. ``matrix``: which row of ``importance`` weighs it. ``first``: the element of the tensor that the
        slice begins with. ConversionError names the tensor, and the place of what is no number."""
        weights = None if self.importance is None else self.importance[matrix]
        try:
            if self.encoder.transcode and self.want.rowwise:
                done = self.encoder.transcode(data, self.source, self.columns, weights)
                if done is not None:
                    if self.sums is not None:
                        self.sums.add(ErrorSums.of(done[1]))
                    return done[0]  # type: ignore[no-any-return]
            return self._encode(data, weights)
        except ValueError as error:
            why = self._infinite(data, first) or error
            raise ConversionError(f"tensor {self.name} cannot be encoded as {self.dtype}: {why}") from error

    def _infinite(self, data: NDArray[np.uint8], first: int) -> str:
        """What stands where among the tensor's rows, where a value is NaN or infinite: a codec knows the place in its slice."""
        import numpy as np

        values = self.decoder.decode(data, len(data) // self.have.block_bytes * self.have.block)
        finite = np.isfinite(values)
        if finite.all():
            return ""
        at = int(finite.argmin())
        value = "NaN" if np.isnan(values[at]) else "infinity" if values[at] > 0 else "-infinity"
        row, column = divmod(first + at, self.columns)
        return f"{value} at row {row}, column {column}: it cannot be quantized"

    def _encode(self, data: NDArray[np.uint8], weights: Any) -> NDArray[np.uint8]:
        import numpy as np

        elements = len(data) // self.have.block_bytes * self.have.block
        if not self.want.rowwise and elements > PIECE and PIECE % self.unit == 0:  # pieces that stay in the processor's cache
            nbytes = PIECE // self.have.block * self.have.block_bytes
            return np.concatenate([self._piece(data[at : at + nbytes], weights) for at in range(0, len(data), nbytes)])
        return self._piece(data, weights)

    def _piece(self, data: NDArray[np.uint8], weights: Any) -> NDArray[np.uint8]:
        import numpy as np

        elements = len(data) // self.have.block_bytes * self.have.block
        if self.encoder.transcode and self.sums is not None and not self.want.rowwise:
            done = self.encoder.transcode(data, self.source, self.columns, None)
            if done is not None:
                self.sums.add(ErrorSums.of(done[1]))
                return done[0]  # type: ignore[no-any-return]
        values = self.decoder.decode(data, elements)
        assert self.encoder.encode is not None
        if self.want.rowwise:
            rows = np.ascontiguousarray(values, np.float32).reshape(-1, self.columns)
            encoded: NDArray[np.uint8] = self.encoder.encode(rows, weights).reshape(-1)
        else:
            encoded = self.encoder.encode(values)
        if self.sums is not None:
            back = codec_of(self.dtype, "decode").decode(encoded, elements)
            self.sums.take(values, back, self.encoder.maximum)
        return encoded


def encoder_of(tensor: Tensor, handles: Handles, sums: ErrorSums | None = None) -> tuple[Encoder, Tensor]:
    """The encoder of a tensor whose value is a cast, and the tensor that it encodes."""
    cast, source = cast_source(tensor)
    assert cast is not None
    columns = tensor.shape[-1] if tensor.shape else 1
    importance = None
    if len(cast.inputs) > 1:
        importance = read_floats(cast.inputs[1], handles).reshape(-1, columns)
    return Encoder(tensor.name, source.dtype, tensor.dtype, columns, importance, sums), source


def read_floats(value: Value, handles: Handles) -> NDArray[np.float32]:
    """A small F32 value, whole."""
    import numpy as np

    source = open_value(value, handles)
    found: NDArray[np.float32] = np.ascontiguousarray(source.read(0, source.shape[0])).reshape(-1).view(np.uint8).view("<f4")
    return found


def cast_source(tensor: Tensor) -> tuple[Node | None, Tensor]:
    """The cast on top of a tensor's value and the tensor under it; (None, the tensor itself) where there is none."""
    value = tensor.value
    if isinstance(value, Node) and value.op == "cast":
        return value, Tensor(tensor.name, value.args["source"], tensor.shape, value.inputs[0])
    return None, tensor


def prepare(tensors: Iterable[Tensor], before: Callable[[], None]) -> bool:
    """Make ready (`Codec.prepare`) what the casts among ``tensors`` need, before threads use it; was there anything? ``before``
    is called before each; what it raises ends this."""
    needed: dict[tuple[str, str], None] = {}
    for tensor in tensors:
        cast, source = cast_source(tensor)
        if cast:
            needed |= dict.fromkeys([(source.dtype, "decode"), (tensor.dtype, "weigh" if len(cast.inputs) > 1 else "encode")])
    done = False
    for dtype, use in needed:
        codec = find(dtype)
        if codec is not None and codec.prepare is not None:
            before()
            codec.prepare(use)
            done = True
    return done
