"""Lays out an `.npz` archive as ``numpy.savez`` does: a zip of stored `.npy` members, their data aligned to 64 bytes."""

from __future__ import annotations

from modelhub import Put, StoredZip, Table, WriteOptions, Writer

from modelhub_numpy.header import DTYPES, MAGIC

_WRITTEN = {dtype: ("|" if name[1:] == "1" else "<") + name for name, dtype in DTYPES.items() if dtype != "BF16"}


def create_npz(table: Table, options: WriteOptions) -> Writer:
    """One member a tensor, ``NAME.npy``, headers of version 1 (which hold any shape that NumPy has)."""
    archive = StoredZip()
    for tensor in table.logical:
        text = f"{{'descr': '{_WRITTEN[tensor.dtype]}', 'fortran_order': False, 'shape': {tuple(tensor.shape)!r}, }}".encode()
        text += b" " * (-(len(text) + 11) % 64) + b"\n"
        yield archive.start(f"{tensor.name}.npy", MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text)
        yield archive.finish((yield Put(tensor, checksum="crc32")))
    yield archive.directory()
