"""The conformance kit on adapters' directories, whose configuration peft writes, and whose weights are a container of another's:
so the format declares no dtypes, and what can be written is said here. Nor does the kit know that ``write`` makes a directory:
the weights alone are told too, where a base lies beside them. The plugin makes none itself, and half of the kit is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
from modelhub.testing import FormatConformance
from modelhub.testing.kit import Arrays
from safetensors.numpy import save_file

DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class TestSafetensors(FormatConformance):
    format = "peft"
    library_dtypes = DTYPES
    directory = True

    def write(self, path: Path, tensors: Arrays) -> None:
        peft.LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(str(path))
        save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, path / "adapter_model.safetensors")


class TestPickle(FormatConformance):
    """As older versions of peft had it."""

    format = "peft"
    library_dtypes = DTYPES
    directory = True

    def write(self, path: Path, tensors: Arrays) -> None:
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]).save_pretrained(str(path))
        torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path / "adapter_model.bin")
