"""TensorFlow files that are wrong, each in one way: made of the bytes of good ones.

A checkpoint's index is put together here byte by byte, so that its checksums can be right where its content is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelhub_tensorflow.sorted_table import build, masked

CHECKPOINT_BYTES = 64


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def shape(*sides: int) -> bytes:
    return message(2, b"".join(message(2, number(1, side)) for side in sides))


def header(shards: int = 1) -> bytes:
    return number(1, shards) + message(3, number(1, 1))


def entry(
    dtype: int = 1, sides: tuple[int, ...] = (4, 4), shard: int = 0, offset: int = 0, size: int = CHECKPOINT_BYTES
) -> bytes:
    places = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + shape(*sides) + places + b"\x35\0\0\0\0"


def index(entries: Mapping[bytes, bytes] | None = None, first: bytes | None = None) -> bytes:
    """A table with right checksums, of a header and ``entries`` in the order that they are given in."""
    return build([(b"", header() if first is None else first), *(entries or {b"w": entry()}).items()])


def flipped(data: bytes, at: int) -> bytes:
    out = bytearray(data)
    out[at] ^= 0x10
    return bytes(out)


def sharing(count: int, length: int) -> bytes:
    """An index whose keys are nearly all of their length what the one before was."""
    entries = varint(0) * 2 + varint(len(header())) + header() + varint(0) + varint(length) + varint(0) + b"a" * length
    entries += b"".join(varint(length - 2) + varint(2) + varint(0) + (0x6200 + at).to_bytes(2, "big") for at in range(count))
    out = bytearray()

    def add(content: bytes) -> bytes:
        content += b"\0\0\0\0\1\0\0\0"
        place = varint(len(out)) + varint(len(content))
        out.extend(content + b"\0" + masked(content + b"\0").to_bytes(4, "little"))
        return place

    handle = add(entries)
    footer = add(b"") + add(varint(0) + varint(1) + varint(len(handle)) + b"w" + handle)
    return bytes(out) + footer.ljust(40, b"\0") + index()[-8:]


def compressed(whole: bytes, claimed: int = 0) -> bytes:
    """An index of one block with that block in Snappy: nothing but literals."""
    end = whole.rindex(b"\0\0\0\0\1\0\0\0", 0, whole.index(b"\0\0\0\0\1\0\0\0") + 8) + 8
    block = whole[:end]
    packed = varint(claimed or len(block)) + bytes([61 << 2]) + (len(block) - 1).to_bytes(2, "little") + block + b"\1"
    out = bytearray(packed + masked(packed).to_bytes(4, "little"))

    def add(content: bytes) -> bytes:
        content += b"\0\0\0\0\1\0\0\0"
        place = varint(len(out)) + varint(len(content))
        out.extend(content + b"\0" + masked(content + b"\0").to_bytes(4, "little"))
        return place

    handle = varint(0) + varint(len(packed) - 1)
    footer = add(b"") + add(varint(0) + varint(1) + varint(len(handle)) + b"w" + handle)
    return bytes(out) + footer.ljust(40, b"\0") + whole[-8:]


def piece(*sides: tuple[int, int]) -> bytes:
    """A slice in an entry."""
    return message(7, b"".join(message(1, number(1, at) + number(2, length)) for at, length in sides))


def bad_indexes() -> Iterator[tuple[str, bytes, str, str]]:
    """(name, an index, its state, what its reason holds); 64 bytes of data stand beside it."""
    good = index()
    yield "crc", flipped(good, 6), "invalid", "CRC-32C"
    yield "crc of the index of blocks", flipped(good, len(good) - 60), "invalid", ""
    yield "cut", good[:-1], "invalid", "does not end in"
    yield "magic alone", good[-8:], "invalid", ""
    yield "footer alone", good[-48:], "invalid", ""
    yield "far block", b"\0" * 8 + (varint(1 << 60) * 4).ljust(40, b"\0")[:40] + good[-8:], "invalid", "reaches behind"
    yield "no header", build([(b"w", entry())]), "invalid", "header"
    yield "nothing", build([]), "invalid", "header"
    yield "no data files", index(first=number(1, 0)), "invalid", "data files"
    yield "a million data files", index(first=number(1, 1_000_000)), "invalid", "data files"
    yield "negative offset", index({b"w": entry(offset=-8)}), "invalid", "offset"
    yield "other data file", index({b"w": entry(shard=3)}), "invalid", "data file 3"
    yield "size", index({b"w": entry(size=60)}), "invalid", "takes 64 bytes"
    yield "overflow", index({b"w": entry(sides=(1 << 40, 1 << 40))}), "invalid", "takes"
    yield "open side", index({b"w": entry(sides=(-1, 4))}), "invalid", "open"
    yield "behind the end", index({b"w": entry(offset=8)}), "incomplete", ""
    yield "unsorted", index({b"w": entry(), b"a": entry()}), "invalid", "sorted"
    yield "name", index({b"\xff\xfe": entry()}), "invalid", "UTF-8"
    yield "slice without data", index({b"w": entry() + piece((0, 2), (0, 4))}), "invalid", "has no entry"
    yield "keys that share", sharing(2000, 60_000), "invalid", "no writer shares so much"
    yield "wire", index({b"w": b"\x0b\x0c" * 20}), "invalid", ""


def operator(name: str, *, function: bool = False, extra: bytes = b"") -> bytes:
    """A SavedModel of one node."""
    node = message(1, b"here") + message(2, name.encode()) + extra
    if function:
        inside = message(1, message(1, b"__inference_f_1")) + message(3, node)
        graph = message(1, message(1, b"x") + message(2, b"NoOp")) + message(2, message(1, inside))
    else:
        graph = message(1, node)
    information = message(4, b"serve") + message(5, b"2.21.0")
    return number(1, 1) + message(2, message(1, information) + message(2, graph))


def text_attribute(name: str, text: str) -> bytes:
    return message(5, message(1, name.encode()) + message(2, message(2, text.encode())))


UNSAFE = {
    "ReadFile": operator("ReadFile"),
    "WriteFile": operator("WriteFile", function=True),
    "PyFunc": operator("PyFunc"),
    "PyFuncStateless": operator("PyFuncStateless", function=True),
    "EagerPyFunc": operator("EagerPyFunc"),
    "TFRecordDatasetV2": operator("TFRecordDatasetV2", function=True),
    "SqlDataset": operator("SqlDataset"),
    "SaveV2": operator("SaveV2", function=True),
    "RpcCall": operator("RpcCall"),
    "DatasetFromGraph": operator("DatasetFromGraph", function=True),
    "PrintV2": operator("PrintV2", extra=text_attribute("output_stream", "file:///etc/cron.d/x")),
    "DecodeProtoV2": operator("DecodeProtoV2", extra=text_attribute("descriptor_source", "/etc/passwd")),
    "DebugIdentityV3": operator(
        "DebugIdentityV3", extra=message(5, message(1, b"debug_urls") + message(2, message(1, message(2, b"file:///tmp/x"))))
    ),
}
SAFE = {
    "SaveV2": operator("SaveV2"),
    "RestoreV2": operator("RestoreV2", function=True),
    "PrintV2": operator("PrintV2", extra=text_attribute("output_stream", "stderr")),
    "DecodeProtoV2": operator("DecodeProtoV2", extra=text_attribute("descriptor_source", "local://")),
    "InitializeTableFromTextFileV2": operator("InitializeTableFromTextFileV2"),
}


def constant(content: bytes, sides: tuple[int, ...] = (4, 4), dtype: int = 1) -> bytes:
    """A graph of one constant, whose numbers are the fields ``content``."""
    tensor = number(1, dtype) + shape(*sides) + content
    attribute = message(5, message(1, b"value") + message(2, message(8, tensor)))
    return message(1, message(1, b"c") + message(2, b"Const") + attribute)


def bad_graphs() -> Iterator[tuple[str, bytes, str]]:
    """(name, a graph, what its reason holds)."""
    yield "short content", constant(message(4, bytes(60))), "takes 64 bytes"
    yield "field of another type", constant(message(7, bytes(16))), "field 7"
    yield "too many numbers", constant(message(5, bytes(68))), "17 numbers"
    yield "no whole numbers", constant(message(5, bytes(63))), "no whole numbers"
    yield "open sides", constant(message(4, bytes(64)), sides=(-1, 4)), "open sides"
    yield "two many sides", constant(message(4, bytes(4)), sides=(1,) * 300), "side 254"
    whole = message(1, message(1, b"x") + message(2, b"NoOp")) + constant(message(4, bytes(64)))
    yield "cut", whole[:-9], "ends at"
