"""NumPy .npz archives for modelhub: a stored zip member is an extent."""

import re
from math import prod

from modelhub import Detection, Extent, Format, InvalidFile, Put, Rejected, StoredZip, Tensor, dtypes, hookimpl, ops, zip_members

DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
          "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL", "<c8": "C64", "<c16": "C128"}  # fmt: skip
DESCRS = {dtype: descr for descr, dtype in DTYPES.items()}
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n", re.S
)


def detect(file):
    if not file.name.lower().endswith(".npz"):
        return None
    return Detection([file.path], confidence=90) if file.head.startswith(b"PK") else Rejected("an .npz that is not a zip")


def read(checkpoint):  # headers only: every Tensor says where its bytes lie
    for member in zip_members(checkpoint.primary, fold_case=False):
        name = member.name.removesuffix(".npy")
        header = HEADER.match(member.peek(checkpoint.primary, 4096))
        if not header:
            raise InvalidFile(f"member {member.name!r} does not start with an .npy header")
        descr, shape = header[1].decode("latin1"), tuple(int(side) for side in header[3].split(b",") if side.strip())
        if descr not in DTYPES:
            yield Tensor(name, descr, shape, None, unsupported=f"array of NumPy type {descr}")
            continue
        dtype, start, nbytes = DTYPES[descr], header.end(), member.size - header.end()
        if nbytes != dtypes.get(dtype).nbytes(shape):
            raise InvalidFile(f"member {member.name!r}: {nbytes} bytes do not make {dtype} {shape}")
        value = Extent(member.file, member.offset + start, nbytes)
        if member.deflated:
            value = ops.inflate(member.extent, skip=start, nbytes=nbytes)
        if header[2] == b"True":
            value = ops.strided(value, dtype, shape, [prod(shape[:axis]) for axis in range(len(shape))])
        yield Tensor(name, dtype, shape, value)


def create(table, options):  # the file in order: bytes from here, tensors from the engine
    zip_ = StoredZip()
    for tensor in table.logical:
        text = f"{{'descr': '{DESCRS[tensor.dtype]}', 'fortran_order': False, 'shape': {tuple(tensor.shape)}, }}".encode()
        text += b" " * (-(len(text) + 11) % 64) + b"\n"
        yield zip_.start(tensor.name + ".npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        yield zip_.finish((yield Put(tensor, checksum="crc32")))
    yield zip_.directory()


@hookimpl
def modelhub_formats():
    yield Format(name="npz", title="NumPy archive", suffixes=(".npz",), extension=".npz", dtypes=tuple(DESCRS),
                 detect=detect, read=read, create=create)  # fmt: skip
