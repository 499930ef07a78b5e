"""The matrix that a product quantizer's codes stand for: each row is put together from one of 256 centroids for each part of it,
times the row's norm where that was taken out before.

(``ProductQuantizer::addcode``, ``QuantMatrix::addRowToVector``: centroids of a part stand one behind another, the last part may
be shorter; float32 all through.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelhub import Op

CENTROIDS = 256
_Spec = tuple[str, tuple[int, ...]]


def _infer(inputs: Sequence[_Spec], args: Mapping[str, Any]) -> _Spec:
    dim, part = args["dim"], args["part"]
    if len(inputs) not in (2, 4) or type(dim) is not int or type(part) is not int or not 0 < part <= dim:
        raise ValueError(f"fasttext.pq: {len(inputs)} inputs, rows of {dim} in parts of {part}")
    (kind, shape), centroids = inputs[0], inputs[1]
    if kind != "U8" or len(shape) != 2 or shape[1] != -(-dim // part) or centroids != ("F32", (CENTROIDS * dim,)):
        raise ValueError(f"fasttext.pq: codes of {kind} {list(shape)} and centroids of {list(centroids[1])} for rows of {dim}")
    if len(inputs) == 4 and list(inputs[2:]) != [("U8", shape[:1]), ("F32", (CENTROIDS,))]:
        raise ValueError("fasttext.pq: norms that do not fit")
    return "F32", (shape[0], dim)


def _rows(sources: Sequence[Any], args: Mapping[str, Any], start: int, stop: int) -> Any:
    import numpy as np

    dim, part = args["dim"], args["part"]
    codes = sources[0].read(start, stop)
    centroids = sources[1].read(0, CENTROIDS * dim)
    out = np.empty((stop - start, dim), "<f4")
    for number, low in enumerate(range(0, dim, part)):
        width = min(part, dim - low)
        table = centroids[CENTROIDS * low : CENTROIDS * (low + width)].reshape(CENTROIDS, width)
        out[:, low : low + width] = table[codes[:, number]]
    if len(sources) == 4:
        out *= sources[3].read(0, CENTROIDS)[sources[2].read(start, stop)][:, None]
    return out + np.float32(0)  # fastText adds to zeros: there is no -0


def _needs(inputs: Sequence[_Spec], args: Mapping[str, Any], start: int, stop: int) -> Sequence[tuple[int, int]]:
    whole = [(0, inputs[1][1][0]), (start, stop), (0, CENTROIDS)]
    return [(start, stop), *whole[: len(inputs) - 1]]


OP = Op(name="fasttext.pq", rows=_rows, infer=_infer, needs=_needs)
