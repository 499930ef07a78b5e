"""The codec registry, and the codecs of the plain dtypes: exact decoding, and encoding rounded to nearest, ties to even.

Formats of eight bits and fewer are table look-ups, both ways. Encoding goes through *round to odd*: a float64 or float32 is first
cut to a shorter float whose last bit says "something was cut", which makes the second rounding exact wherever the shorter
float has at least two more bits than the target (Boldo and Melquiond, 2008). Bit layouts: OCP 8-bit Floating Point and
Microscaling specifications, and for FNUZ the types of LLVM's APFloat.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from modelhub.declared import Codec
from modelhub.errors import MissingCapability

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Floats = Any

_REGISTRY: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Add ``codec``. The same record twice is fine; another one for the same dtype is a ValueError."""
    if _REGISTRY.setdefault(codec.dtype, codec) != codec:
        raise ValueError(f"a codec for {codec.dtype} is registered already")


def find(dtype: str) -> Codec | None:
    """The codec of ``dtype``, or None."""
    if "F32" not in _REGISTRY:
        for codec in PLAIN:
            register(codec)
    return _REGISTRY.get(dtype)


def known() -> tuple[Codec, ...]:
    """Every codec there is."""
    find("F32")
    return tuple(_REGISTRY.values())


def codec_of(dtype: str, what: str) -> Codec:
    """The codec of ``dtype``; MissingCapability where no plugin brings one, or it cannot do ``what`` (decode, encode)."""
    codec = find(dtype)
    if codec is None or (what == "encode" and codec.encode is None):
        raise MissingCapability(
            f"nothing here can {what} {dtype}", "`modelhub plugins` lists what is installed and what is missing"
        )
    return codec


# --- floats that NumPy has ----------------------------------------------------------------------------------------


def _decode_numpy(kind: str, wide: str, data: NDArray[np.uint8], elements: int) -> Floats:
    return data.view(kind)[:elements].astype(wide, copy=False)


def _encode_numpy(kind: str, values: Floats) -> NDArray[np.uint8]:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        cast: NDArray[np.uint8] = np.ascontiguousarray(values.astype(kind, copy=False)).view(np.uint8)
    return cast


def _decode_c32(data: NDArray[np.uint8], elements: int) -> Floats:
    import numpy as np

    return data.view("<f2")[: 2 * elements].astype("<f4").view(np.complex64)


# --- BF16 ---------------------------------------------------------------------------------------------------------


def round_to_odd_f32(values: Floats) -> NDArray[np.float32]:
    """float64 to float32, cut towards zero, the last bit set where anything was cut. NaN stays NaN."""
    import numpy as np

    if values.dtype == np.float32:
        same: NDArray[np.float32] = values
        return same
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float32)
        back = near.astype(np.float64)
        bits = near.view(np.uint32).copy()
        inexact = (back != values) & ~np.isnan(values)
        away = inexact & (np.abs(back) > np.abs(values))
    bits[away] -= 1
    bits[inexact] |= 1
    odd: NDArray[np.float32] = bits.view(np.float32)
    return odd


def _decode_bf16(data: NDArray[np.uint8], elements: int) -> Floats:
    import numpy as np

    out = data.view("<u2")[:elements].astype(np.uint32)
    out <<= 16
    return out.view(np.float32)


def _encode_bf16(values: Floats) -> NDArray[np.uint8]:
    import numpy as np

    values = np.ascontiguousarray(round_to_odd_f32(values))
    bits = values.view(np.uint32)
    work = bits >> 16
    work &= 1
    work += 0x7FFF
    work += bits
    work >>= 16
    rounded = work.astype(np.uint16)
    # Adding to a NaN's payload could carry into infinity: keep it quiet and keep its sign.
    if len(values) and np.isnan(values.max()):
        nan = np.isnan(values)
        rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    encoded: NDArray[np.uint8] = rounded.view(np.uint8)
    return encoded


_scratch = threading.local()


def _transcode_bf16(
    data: NDArray[np.uint8], dtype: str, columns: int, importance: Any
) -> tuple[NDArray[np.uint8], tuple[float, ...]] | None:
    """float32 encoded and measured in half the passes that the two take one after the other. Not for pieces with an infinity, a
    NaN, or squares beyond float32."""
    import numpy as np

    if dtype != "F32" or not len(data):
        return None
    values = data.view("<f4")
    bits = values.view(np.uint32)
    size = len(values)
    if getattr(_scratch, "size", 0) < size:
        _scratch.size, _scratch.work, _scratch.back = size, np.empty(size, np.uint32), np.empty(size, np.uint32)
    work, back = _scratch.work[:size], _scratch.back[:size]
    np.right_shift(bits, 16, out=work)
    np.bitwise_and(work, 1, out=work)
    np.add(work, 0x7FFF, out=work)
    np.add(work, bits, out=work)
    np.bitwise_and(work, 0xFFFF0000, out=back)
    apart = back.view(np.float32)
    with np.errstate(all="ignore"):
        np.subtract(apart, values, out=apart)
        own, error, along = (float(np.dot(*pair)) for pair in ((values, values), (apart, apart), (values, apart)))
    if not math.isfinite(own + error + along):
        return None
    np.right_shift(work, 16, out=work)
    largest = max(float(apart.max()), -float(apart.min()))
    return work.astype(np.uint16).view(np.uint8), (size, own, error, own + along, own + 2 * along + error, largest)


# --- floats of eight bits and fewer -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallFloat:
    """A float of ``1 + exponent + mantissa`` bits. ``special``: what its highest codes mean: ``ieee`` infinities and NaNs,
    ``fn`` no infinity and NaN only where all bits are set, ``fnuz`` NaN only at negative zero, ``finite`` neither."""

    exponent: int
    mantissa: int
    bias: int
    special: str

    @property
    def codes(self) -> int:
        return 1 << (self.exponent + self.mantissa)

    @property
    def top(self) -> int:
        """The code of the largest finite magnitude."""
        return {"ieee": self.codes - (1 << self.mantissa) - 1, "fn": self.codes - 2}.get(self.special, self.codes - 1)

    @property
    def maximum(self) -> float:
        return float(abs(_decode_table(self)[self.top]))


@cache
def _decode_table(kind: SmallFloat) -> NDArray[np.float32]:
    """Every code's value; the sign is the highest bit."""
    import numpy as np

    code = np.arange(kind.codes)
    exponent, mantissa = code >> kind.mantissa, code & ((1 << kind.mantissa) - 1)
    whole = np.where(exponent > 0, mantissa + (1 << kind.mantissa), mantissa)
    value = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - kind.bias - kind.mantissa)
    if kind.special == "ieee":
        value[kind.top + 1] = np.inf
        value[kind.top + 2 :] = np.nan
    elif kind.special == "fn":
        value[-1] = np.nan
    both = np.concatenate((value, -value))
    if kind.special == "fnuz":
        both[kind.codes] = np.nan
    table: NDArray[np.float32] = both.astype(np.float32)
    return table


@cache
def _encode_table(kind: SmallFloat) -> NDArray[np.uint8]:
    """The code of each 16-bit upper half of a float32 whose last bit is sticky. Overflow: infinity where the layout has one,
    NaN for FNUZ, else the largest value, as PyTorch's casts do (2.13)."""
    import numpy as np

    halves = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        values = (halves << 16).view(np.float32).astype(np.float64)
    size = np.abs(values)
    with np.errstate(all="ignore"):
        lowest = 1 - kind.bias
        power = np.where(np.isfinite(size) & (size > 0), np.floor(np.log2(size)), lowest).astype(np.int64)
        power = np.maximum(power, lowest)
        quanta = np.rint(np.ldexp(np.where(np.isfinite(size), size, 0), kind.mantissa - power))
    code = ((power - lowest) << kind.mantissa) + quanta.astype(np.int64)
    over = (code > kind.top) | np.isinf(size)
    if kind.special == "ieee":
        code = np.where(over, kind.top + 1, code)
    elif kind.special in ("fn", "finite"):
        code = np.where(over, kind.top, code)
    sign = np.where(halves >> 15 == 1, kind.codes, 0)
    nan = np.isnan(values)
    if kind.special == "fnuz":
        sign = np.where(code == 0, 0, sign)  # there is no negative zero
        code = np.where(over | nan, 0, code)
        sign = np.where(over | nan, kind.codes, sign)
    elif kind.special == "finite":
        code = np.where(nan, kind.top, code)
    else:
        code = np.where(nan, kind.codes - 1, code)
    table: NDArray[np.uint8] = (sign + code).astype(np.uint8)
    return table


def _decode_small(kind: SmallFloat, data: NDArray[np.uint8], elements: int) -> Floats:
    return _decode_table(kind)[data[:elements]]


def _encode_small(kind: SmallFloat, values: Floats) -> NDArray[np.uint8]:
    import numpy as np

    bits = np.ascontiguousarray(round_to_odd_f32(values)).view(np.uint32)
    codes: NDArray[np.uint8] = _encode_table(kind)[(bits >> 16) | ((bits & 0xFFFF) != 0)]
    return codes


E4M3 = SmallFloat(4, 3, 7, "fn")
E5M2 = SmallFloat(5, 2, 15, "ieee")
E4M3FNUZ = SmallFloat(4, 3, 8, "fnuz")
E5M2FNUZ = SmallFloat(5, 2, 16, "fnuz")
E2M3 = SmallFloat(2, 3, 1, "finite")
E3M2 = SmallFloat(3, 2, 3, "finite")
E2M1 = SmallFloat(2, 1, 1, "finite")


def _decode_e8m0(data: NDArray[np.uint8], elements: int) -> Floats:
    import numpy as np

    code = data[:elements].astype(np.int32)
    return np.where(code == 255, np.float32(np.nan), np.ldexp(np.float32(1), code - 127))


def _packed(bits: int, decode: Callable[[Any, int], Any], encode: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Codecs of codes of ``bits`` bits that stand in bytes without gaps, low bits first."""

    def unpack(data: NDArray[np.uint8], elements: int) -> Floats:
        import numpy as np

        flat = np.unpackbits(data, bitorder="little")[: elements * bits].reshape(-1, bits)
        return decode(np.packbits(flat, axis=1, bitorder="little").reshape(-1), elements)

    def pack(values: Floats) -> NDArray[np.uint8]:
        import numpy as np

        codes = encode(values)
        flat = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
        return np.packbits(flat.reshape(-1), bitorder="little")

    return unpack, pack


def _plain() -> Iterator[Codec]:
    for name, kind, wide in (("F32", "<f4", "<f4"), ("F64", "<f8", "<f8"), ("C64", "<c8", "<c8"), ("C128", "<c16", "<c16")):
        yield Codec(dtype=name, decode=partial(_decode_numpy, kind, wide), encode=partial(_encode_numpy, kind), maximum=None)
    yield Codec(dtype="F16", decode=partial(_decode_numpy, "<f2", "<f4"), encode=partial(_encode_numpy, "<f2"), maximum=65504.0)
    largest = float.fromhex("0x1.fep127")
    yield Codec(dtype="BF16", decode=_decode_bf16, encode=_encode_bf16, transcode=_transcode_bf16, maximum=largest)
    yield Codec(dtype="C32", decode=_decode_c32)
    integers = (("BOOL", "|b1"), ("U8", "|u1"), ("I8", "|i1"), ("U16", "<u2"), ("I16", "<i2"), ("U32", "<u4"), ("I32", "<i4"))
    for name, kind in (*integers, ("U64", "<u8"), ("I64", "<i8")):
        yield Codec(dtype=name, decode=partial(_decode_numpy, kind, "<f8" if kind[-1] in "48" else "<f4"))
    small = (("F8_E4M3", E4M3), ("F8_E5M2", E5M2), ("F8_E4M3FNUZ", E4M3FNUZ), ("F8_E5M2FNUZ", E5M2FNUZ))
    maxima = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0, "F8_E4M3FNUZ": 240.0, "F8_E5M2FNUZ": 57344.0}
    for name, layout in small:
        yield Codec(
            dtype=name, decode=partial(_decode_small, layout), encode=partial(_encode_small, layout), maximum=maxima[name]
        )
    yield Codec(dtype="F8_E8M0", decode=_decode_e8m0)
    for name, layout, bits, top in (("F4", E2M1, 4, 6.0), ("F6_E2M3", E2M3, 6, 7.5), ("F6_E3M2", E3M2, 6, 28.0)):
        decode, encode = _packed(bits, partial(_decode_small, layout), partial(_encode_small, layout))
        yield Codec(dtype=name, decode=decode, encode=encode, maximum=top)


PLAIN = tuple(_plain())
