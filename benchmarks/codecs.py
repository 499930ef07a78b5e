"""Block encodings on one core: encoding against libggml's ``ggml_quantize_chunk``, decoding against ``gguf.quants.dequantize``.

    python benchmarks/codecs.py [MILLIONS OF ELEMENTS] [PAIRS] [DTYPE ...]

One process, one thread, both sides in turn; seconds of processor time, since other processes share the machine. Our side reads
BF16 and measures the error as it goes, as a conversion does; libggml gets the same numbers as float32. Needs the test extras.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from modelhub_gguf.codecs import CODECS
from modelhub_gguf.types import BY_NAME

from tests.plugins.gguf import ggml

COLUMNS = 4096


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(title: str, elements: int, pairs: int, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Print the median speeds, and how often theirs takes as long as ours, pair by pair."""
    ours()
    runs = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in runs)
    a, b = (statistics.median(side) for side in zip(*runs, strict=True))
    print(
        f"  {title:24} {elements / a / 1e6:7.0f} M/s   peer {elements / b / 1e6:7.0f} M/s   "
        f"{statistics.median(ratios):5.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        flush=True,
    )


def main(millions: float, pairs: int, *dtypes: str) -> None:
    import gguf

    rows = max(int(millions * 1e6) // COLUMNS, 1)
    random = np.random.default_rng(0)
    upper = (random.standard_normal((rows, COLUMNS), np.float32) * np.float32(0.02)).view(np.uint32) >> np.uint32(16)
    data = upper.astype(np.uint16).reshape(-1).view(np.uint8)
    values = (upper << np.uint32(16)).view(np.float32)
    importance = random.random(COLUMNS, np.float32)
    chosen = [codec for codec in CODECS if not dtypes or codec.dtype in dtypes]
    print("encode, and measure the error, against ggml_quantize_chunk")
    for codec in chosen:
        if codec.transcode is None:
            continue
        for title, weights in ((codec.dtype, None), (f"{codec.dtype} with importance", importance)):
            ours = partial(codec.transcode, data, "BF16", COLUMNS, weights)
            compare(title, values.size, pairs, ours, partial(ggml.quantize, codec.dtype, values, weights))
    print("decode, against gguf.quants.dequantize")
    for codec in chosen:
        if codec.dtype in ("Q8_1", "Q8_K", "Q1_0", "Q2_0"):  # gguf-py does not decode these
            continue
        kind = BY_NAME[codec.dtype]
        blocks = random.integers(0, 100, (values.size // kind.block, kind.nbytes), dtype=np.uint8)
        ours = partial(codec.decode, blocks.reshape(-1), values.size)
        compare(codec.dtype, values.size, pairs, ours, partial(gguf.dequantize, blocks, gguf.GGMLQuantizationType[codec.dtype]))


if __name__ == "__main__":
    millions, pairs, *dtypes = (*sys.argv[1:], *("4", "5")[len(sys.argv) - 1 :])
    main(float(millions), int(pairs), *dtypes)
