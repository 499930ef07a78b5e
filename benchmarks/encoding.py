"""GGUF's block types, on one core: encoding against ``ggml_quantize_chunk`` of llama.cpp (as the xllamacpp wheel carries it), and
decoding against gguf-py's ``quants.dequantize``.

Both sides take turns in one process, chunk by chunk, on other numbers each time (branches that learn the numbers by heart are
not what quantizing a model meets); the fastest turn of each counts. Encoding here means what a conversion does: from BF16, with
the sums of errors. In brackets: float32 to blocks and nothing else, which is what llama.cpp's function does.

python benchmarks/encoding.py [DTYPE ...] [--seconds SECONDS]
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from modelhub import plugins
from modelhub.codecs import codec_of
from modelhub_gguf.types import BY_NAME

COLUMNS, ROWS, CHUNKS = 4096, 32, 8


def quantize_chunk() -> Any:
    """llama.cpp's function."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install xllamacpp, which is what this is measured against")
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return function


def turns(sides: Sequence[Callable[[int], object]], seconds: float) -> list[float]:
    """Nanoseconds an element that each side takes at best; called with the number of the chunk."""
    best = [float("inf")] * len(sides)
    for number in range(CHUNKS):
        for side in sides:
            side(number)
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end or number < CHUNKS:
        for index, side in enumerate(sides):
            for again in range(2):  # the second of them finds the caches as a conversion does
                started = time.perf_counter()
                side((number + again) % CHUNKS)
                best[index] = min(best[index], time.perf_counter() - started)
        number += 1
    return [one / (ROWS * COLUMNS) * 1e9 for one in best]


def encoding(dtype: str, floats: Sequence[Any], importance: Any, seconds: float, ggml: Any) -> str:
    codec, kind = codec_of(dtype, "encode"), BY_NAME[dtype]
    assert codec.encode
    halves = [(chunk.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(-1).view(np.uint8) for chunk in floats]
    out = np.empty(ROWS * COLUMNS // kind.block * kind.nbytes, np.uint8)
    weights = None if importance is None else importance.ctypes.data

    def theirs(number: int) -> None:
        ggml(kind.number, floats[number].ctypes.data, out.ctypes.data, 0, ROWS, COLUMNS, weights)

    def ours(number: int) -> Any:
        return codec.transcode(halves[number], "BF16", COLUMNS, importance) if codec.transcode else None

    def plain(number: int) -> Any:
        return codec.encode(floats[number], importance)  # type: ignore[misc]

    theirs(0)
    if not np.array_equal(plain(0), out):
        raise SystemExit(f"{dtype}: the blocks differ from ggml's")
    a, b, c = turns([theirs, ours, plain], seconds)
    name = f"{dtype}, importance" if importance is not None else dtype
    if ours(0) is None:  # no fused way: there is only the plain one
        return f"{name:20} {a:9.2f} {'':9} {'':8} ({c:6.2f}, {a / c:5.1f}x)"
    return f"{name:20} {a:9.2f} {b:9.2f} {a / b:7.1f}x ({c:6.2f}, {a / c:5.1f}x)"


def decoding(dtype: str, floats: Sequence[Any], seconds: float) -> str:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    codec, kind = codec_of(dtype, "decode"), BY_NAME[dtype]
    encode = codec_of(dtype, "encode").encode
    assert encode
    blocks = [encode(chunk, None) for chunk in floats]
    rows = [chunk.reshape(ROWS, -1) for chunk in blocks]

    def theirs(number: int) -> Any:
        return dequantize(rows[number], GGMLQuantizationType(kind.number))

    def ours(number: int) -> Any:
        return codec.decode(blocks[number], ROWS * COLUMNS)

    if not np.array_equal(theirs(0).reshape(-1), ours(0)):
        raise SystemExit(f"{dtype}: the floats differ from gguf-py's")
    a, b = turns([theirs, ours], seconds)
    return f"{dtype:20} {a:9.2f} {b:9.2f} {a / b:7.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dtypes", nargs="*", help="all that both can encode, unless some are named")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    arguments = parser.parse_args()
    plugins.get()
    random = np.random.default_rng(0)
    floats = random.standard_normal((CHUNKS, ROWS, COLUMNS)).astype(np.float32)
    floats = (floats.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    importance = random.random(COLUMNS).astype(np.float32) + np.float32(0.01)
    ggml = quantize_chunk()
    searched = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
    weighted = (*searched, "Q4_0", "Q4_1", "Q5_0", "Q5_1")
    dtypes = arguments.dtypes or (*searched, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
    print(f"{'encoding, ns/element':20} {'llama.cpp':>9} {'modelhub':>9} {'':8} (from float32, no sums)")
    for dtype in dtypes:
        for weights in (None, importance) if dtype in weighted else (None,):
            print(encoding(dtype, floats, weights, arguments.seconds, ggml), flush=True)
    print(f"\n{'decoding, ns/element':20} {'gguf-py':>9} {'modelhub':>9}")
    for dtype in dtypes:
        print(decoding(dtype, floats, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
