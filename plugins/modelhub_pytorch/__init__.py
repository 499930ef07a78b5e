"""PyTorch for modelhub: reads ``torch.save`` files of every age and TorchScript archives, and writes them, without torch.

Pickles are followed, never unpickled: `modelhub_pytorch.pickle_vm`. Other plugins whose directories hold such files use
`read_files`.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, hookimpl

from modelhub_pytorch import checks, fake_quant
from modelhub_pytorch.detect import MAGICS, SUFFIXES, detect
from modelhub_pytorch.reader import read, read_files
from modelhub_pytorch.writer import DTYPES, create

__all__ = ["modelhub_checks", "modelhub_formats", "modelhub_ops", "read_files"]


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="pytorch",
        title="PyTorch",
        suffixes=SUFFIXES,
        magics=MAGICS,
        dtypes=DTYPES,
        extension=".pt",
        sharing="any",
        detect=detect,
        read=read,
        create=create,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    holders = ("pytorch", "huggingface")  # a directory of shards is another format's, its pickles are ours
    yield Check(name=checks.GLOBALS, level="safety", formats=holders, run=checks.pickle_globals)
    yield Check(name=checks.CRC, level="values", formats=holders, run=checks.zip_crc)


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from fake_quant.OPS
