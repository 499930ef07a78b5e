"""How large a table is in given types: bits per weight as ``llama-quantize`` counts them, and the bytes of the file.

Facts: ``llama_model_quantize_impl`` (llama.cpp ``src/llama-quant.cpp``) counts the tensors' bytes over all elements, without
header and padding; the layout of a file is that of the GGUF specification (ggml ``docs/gguf.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from modelhub import Choice, Extent, Table, Tensor, dtypes

from modelhub_gguf.fields import encode
from modelhub_gguf.header import ALIGNMENT


def elements(table: Table) -> int:
    """Elements of the logical tensors."""
    return sum(prod(tensor.shape) for tensor in table.logical)


def tensor_bytes(tensor: Tensor, dtype: str) -> int:
    """Bytes of a tensor in a type whose blocks divide its rows."""
    return dtypes.get(dtype).nbytes(tensor.shape)


def bits_per_weight(table: Table, choices: Mapping[str, Choice]) -> float:
    """Bits of a file's tensors over their elements; 0 where there are none."""
    count = elements(table)
    taken = sum(tensor_bytes(tensor, _type(tensor, choices)) for tensor in table.logical)
    return taken * 8 / count if count else 0.0


def header_bytes(table: Table, native: Mapping[str, Any]) -> int:
    """Bytes before the data of a file with the table's tensors and these keys: magic, version and two counts; keys; infos;
    padding."""
    size = 24
    for key, field in native.items():
        size += 8 + len(key.encode("utf-8", "surrogateescape"))
        size += sum(piece.nbytes if isinstance(piece, Extent) else len(piece) for piece in encode(field))
    for tensor in table.logical:
        size += 8 + len(tensor.name.encode("utf-8", "surrogateescape")) + 4 + 8 * len(tensor.shape) + 4 + 8
    return padded(size, native)


def padded(size: int, native: Mapping[str, Any]) -> int:
    """``size`` rounded up to the alignment that the keys ask for."""
    field = native.get("general.alignment")
    alignment = field.value if field is not None and isinstance(field.value, int) and field.value > 0 else ALIGNMENT
    return size + -size % alignment


def _type(tensor: Tensor, choices: Mapping[str, Choice]) -> str:
    choice = choices.get(tensor.name)
    return choice.dtype if choice else tensor.dtype
