"""What the PyTorch tests share: looking at a file as modelhub does, and the bytes that torch has for a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modelhub import Table, plugins
from modelhub.detect import inspect_path
from modelhub.engine import read_tensor, write_checkpoint
from modelhub.found import Found
from modelhub.types import WriteOptions

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex32: "C32",
    torch.complex64: "C64",
    torch.complex128: "C128",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}
"""Every dtype that both have."""


def look(path: Path) -> Found:
    """What ``modelhub show`` knows of ``path``."""
    return inspect_path(str(path), plugins.get().formats)


def table(path: Path) -> Table:
    found = look(path)
    assert (found.state, found.reason) == ("ready", "")
    return found.load_table()


def raw(tensor: torch.Tensor) -> bytes:
    """C-order bytes of a tensor, as torch has them."""
    plain = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    flat = torch.empty(plain.shape, dtype=plain.dtype).copy_(plain)  # one element may have any stride and still be contiguous
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def filled(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """A contiguous tensor of any bytes that its dtype allows."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def assert_holds(got: Table, expected: dict[str, torch.Tensor]) -> None:
    """The logical table is exactly ``expected``, bit for bit."""
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in got.logical} == {
        name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in expected.items()
    }
    for tensor in got.logical:
        assert bytes(read_tensor(tensor)) == raw(expected[tensor.name]), tensor.name


def write(got: Table, path: Path, **options: Any) -> Path:
    """Written through the engine, as ``convert`` does."""
    write_checkpoint(plugins.get().formats["pytorch"], got, str(path), WriteOptions(name=path.stem, **options))
    return path
