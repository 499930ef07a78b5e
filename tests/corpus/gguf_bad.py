"""GGUF files built by hand, byte by byte: broken ones with what each gets, and odd ones that are legal."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
HUGE = 1 << 63


def text(value: str | bytes, order: str = "<") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(data)) + data


def key(name: str | bytes, kind: int, value: Any, order: str = "<", item: int = U32) -> bytes:
    """One key with its value; a list is an array of ``item``."""
    head = text(name, order) + struct.pack(order + "I", kind)
    if kind == STRING:
        return head + text(value, order)
    if kind == ARRAY:
        items = [text(one, order) if item == STRING else struct.pack(order + CODES[item], one) for one in value]
        return head + struct.pack(order + "IQ", item, len(value)) + b"".join(items)
    return head + struct.pack(order + CODES[kind], value)


def info(name: str | bytes, sides: Sequence[int], kind: int = 0, offset: int = 0, order: str = "<") -> bytes:
    """One tensor's info; ``sides`` innermost first, as they stand in the file."""
    return text(name, order) + struct.pack(f"{order}I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def build(
    keys: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    order: str = "<",
    n_keys: int | None = None,
    n_infos: int | None = None,
    alignment: int = 32,
    magic: bytes = b"GGUF",
) -> bytes:
    head = magic + struct.pack(order + "I", version)
    head += struct.pack(order + "QQ", len(infos) if n_infos is None else n_infos, len(keys) if n_keys is None else n_keys)
    head += b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


ARCHITECTURE = key("general.architecture", STRING, "llama")
ONE = [info("w", [4])]


def _array_header(item: int, count: int) -> bytes:
    return text("a") + struct.pack("<IIQ", ARRAY, item, count)


def _nested(depth: int) -> bytes:
    return text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQI", U32, 1, 7)


INVALID, INCOMPLETE, UNSUPPORTED = "invalid", "incomplete", "unsupported"

BAD: dict[str, tuple[bytes, str, str]] = {
    # 11
    "2^63 keys": (build([ARCHITECTURE], n_keys=HUGE), INVALID, "9223372036854775808 keys"),
    "2^64-1 tensors": (build([ARCHITECTURE], ONE, bytes(16), n_infos=(1 << 64) - 1), INVALID, "18446744073709551615 tensors"),
    "more keys than bytes": (build([ARCHITECTURE], n_keys=50_000, alignment=1), INCOMPLETE, "the file ends at"),
    "more tensors than bytes": (build([ARCHITECTURE], n_infos=200_000, alignment=1), INCOMPLETE, "the file ends at"),
    # 12
    "array of 2^63 numbers": (build([_array_header(U32, HUGE)]), INVALID, "no header takes more"),
    "array of 2^63 texts": (build([_array_header(STRING, HUGE)]), INVALID, "no header takes more"),
    "array of 2^61 u64, which overflow": (build([_array_header(U64, 1 << 61)]), INVALID, "no header takes more"),
    "array past the end": (build([_array_header(U16, 1 << 20)]), INCOMPLETE, "reaches to byte"),
    "array of texts past the end": (build([_array_header(STRING, 1 << 20)]), INCOMPLETE, "the file ends at"),
    # 13
    "key past the end": (build([struct.pack("<Q", 5000) + b"general"]), INCOMPLETE, "the file ends at"),
    "key of 2^63 bytes": (build([struct.pack("<Q", HUGE) + b"general"]), INVALID, "the format allows 65535"),
    "value past the end": (build([text("k") + struct.pack("<IQ", STRING, 5000) + b"abc"]), INCOMPLETE, "the file ends at"),
    "large value past the end": (build([text("k") + struct.pack("<IQ", STRING, 1 << 20) + b"abc"]), INCOMPLETE, "reaches to"),
    "value of 2^64-1 bytes": (build([text("k") + struct.pack("<IQ", STRING, (1 << 64) - 1)]), INVALID, "no header takes more"),
    "text in an array past the end": (
        build([_array_header(STRING, 3) + text("one") + struct.pack("<Q", 9999) + b"two" + text("three")]),
        INCOMPLETE,
        "string 1 of the value of 'a' reaches to byte",
    ),
    "text in an array of 2^64-8 bytes, back to itself": (
        build([_array_header(STRING, 1000) + struct.pack("<Q", (1 << 64) - 8) * 1000]),
        INVALID,
        "string 0 of the value of 'a'",
    ),
    "tensor's name of 2^62 bytes": (build([], [struct.pack("<Q", 1 << 62) + b"w"]), INVALID, "the format allows 65535"),
    # 14
    "nested arrays": (build([_nested(1)]), INVALID, "arrays of arrays"),
    "nested arrays x 5000": (build([_nested(5000)]), INVALID, "arrays of arrays"),
    # 15
    "alignment 0": (build([key("general.alignment", U32, 0)], ONE, bytes(16)), INVALID, "general.alignment is 0"),
    "alignment 3": (build([key("general.alignment", U32, 3)], ONE, bytes(16)), INVALID, "general.alignment is 3"),
    "alignment 2^31": (build([key("general.alignment", U32, 1 << 31)], ONE, bytes(16)), INVALID, "is 2147483648"),
    "alignment as u64": (build([key("general.alignment", U64, 32)], ONE, bytes(16)), INVALID, "is a u64"),
    "alignment as an array": (build([key("general.alignment", ARRAY, [32])], ONE, bytes(16)), INVALID, "is a array of u32"),
    # 16
    "100 dimensions": (build([], [info("w", [1] * 100)], bytes(16)), INVALID, "100 dimensions"),
    "2^32-1 dimensions": (build([], [text("w") + struct.pack("<I", 0xFFFFFFFF)]), INVALID, "4294967295 dimensions"),
    # 17
    "dimensions overflow": (build([], [info("w", [HUGE - 1, 2])], bytes(64)), INVALID, "overflow"),
    "dimensions overflow to nothing": (build([], [info("w", [1 << 32, 1 << 32])], bytes(64)), INVALID, "overflow"),
    "dimensions overflow, no elements": (build([], [info("w", [0, HUGE])], bytes(64)), INVALID, "overflow"),
    "a negative dimension": (build([], [info("w", [(1 << 64) - 4])], bytes(64)), INVALID, "overflow"),
    # 18
    "misaligned offset": (build([], [info("a", [4]), info("b", [4], offset=17)], bytes(64)), INVALID, "no multiple of 32"),
    "overlapping offset": (build([], [info("a", [16]), info("b", [4], offset=32)], bytes(64)), INVALID, "inside the one before"),
    "the same offset": (build([], [info("a", [4]), info("b", [4])], bytes(64)), INVALID, "inside the one before"),
    "offset past the end": (build([], [info("a", [4], offset=1 << 40)], bytes(64)), INCOMPLETE, "which ends at"),
    "offset near 2^64": (build([], [info("a", [4], offset=(1 << 64) - 32)], bytes(64)), INVALID, "no file is so long"),
    "data past the end": (build([], [info("a", [1 << 20])], bytes(64)), INCOMPLETE, "which ends at"),
    # 19
    "Q8_0 with 33 columns": (
        build([], [info("w", [33, 32], kind=8)], bytes(4096)),
        INVALID,
        "rows of 33 elements; Q8_0 packs 32",
    ),
    "Q4_K with 32 columns": (build([], [info("w", [32, 8], kind=12)], bytes(4096)), INVALID, "Q4_K packs 256"),
    "a scalar Q4_0": (build([], [info("w", [], kind=2)], bytes(64)), INVALID, "rows of 1 elements"),
    # 20
    "duplicate tensor": (build([], [info("w", [4]), info("w", [4], offset=32)], bytes(64)), INVALID, "'w' stands twice"),
    "duplicate key": (build([key("k", U32, 1), ARCHITECTURE, key("k", U32, 2)]), INVALID, "'k' stands twice"),
    # 21
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(64), UNSUPPORTED, "version 1"),
    # what else there is
    "version 0": (build(version=0), INVALID, "version 0"),
    "version 4": (build(version=4), UNSUPPORTED, "version 4"),
    "version 2^32-1": (build(version=0xFFFFFFFF), INVALID, "version 4294967295"),
    "big-endian version 1": (b"GGUF" + struct.pack(">IQQ", 1, 0, 0), UNSUPPORTED, "version 1"),
    "an empty key": (build([key("", U32, 1)]), INVALID, "key 0 is empty"),
    "a value type that does not exist": (build([text("k") + struct.pack("<I", 13) + bytes(64)]), INVALID, "has the type 13"),
    "an item type that does not exist": (build([_array_header(77, 1) + bytes(64)]), INVALID, "items of type 77"),
    "a tensor type that was removed": (build([], [info("w", [32], kind=31)], bytes(64)), UNSUPPORTED, "Q4_0_4_4"),
    "a tensor type to come": (build([], [info("w", [32], kind=99)], bytes(64)), UNSUPPORTED, "type 99"),
    "a tensor type that does not exist": (build([], [info("w", [32], kind=1 << 31)], bytes(64)), INVALID, "does not exist"),
    "only the magic": (b"GGUF", INCOMPLETE, "4 bytes long"),
    "only the version": (b"GGUF" + struct.pack("<I", 3), INCOMPLETE, "the file ends at 8"),
    "another magic": (build(magic=b"GGUG"), INVALID, "b'GGUF' was expected"),
    "empty": (b"", INCOMPLETE, "0 bytes long"),
    "zeros": (bytes(4096), INCOMPLETE, "zeros"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", INCOMPLETE, "git lfs pull"),
    "a part on its own": (
        build([key("split.no", U16, 1), key("split.count", U16, 3), key("split.tensors.count", I32, 9)]),
        INCOMPLETE,
        "part 2 of a model of 3",
    ),
}
"""Name -> (bytes, state, words of the reason). The numbers are those of the list of bad inputs."""

GOOD: dict[str, tuple[bytes, dict[str, tuple[str, tuple[int, ...]]]]] = {
    "nothing at all": (build(), {}),
    "version 2": (build([ARCHITECTURE], ONE, bytes(32), version=2), {"w": ("F32", (4,))}),
    "no padding behind the last tensor": (build([ARCHITECTURE], ONE, bytes(16)), {"w": ("F32", (4,))}),
    "no rows": (build([], [info("w", [4, 0]), info("v", [4])], bytes(16)), {"w": ("F32", (0, 4)), "v": ("F32", (4,))}),
    "a scalar": (build([], [info("w", [])], bytes(4)), {"w": ("F32", ())}),
    "alignment 8": (
        build([key("general.alignment", U32, 8)], [info("a", [2]), info("b", [2], offset=8)], bytes(16), alignment=8),
        {"a": ("F32", (2,)), "b": ("F32", (2,))},
    ),
    "tensors in another order than their bytes": (
        build([], [info("b", [4], offset=32), info("a", [4])], bytes(48)),
        {"b": ("F32", (4,)), "a": ("F32", (4,))},
    ),
    "a hole between tensors": (
        build([], [info("a", [4]), info("b", [4], offset=96)], bytes(112)),
        {"a": ("F32", (4,)), "b": ("F32", (4,))},
    ),
    "a name that is a path": (build([], [info("../../x", [4])], bytes(16)), {"../../x": ("F32", (4,))}),
    "texts that are not UTF-8": (
        build([key("general.name", STRING, b"\xff\xfe"), key("tags", ARRAY, [b"\xff"], item=STRING)], ONE, bytes(16)),
        {"w": ("F32", (4,))},
    ),
    "an empty array": (build([key("a", ARRAY, [])], ONE, bytes(16)), {"w": ("F32", (4,))}),
    "a boolean of 7": (build([key("b", BOOL, 7)], ONE, bytes(16)), {"w": ("F32", (4,))}),
    "not a number": (build([key("llama.rope.freq_base", F32, float("nan")), ARCHITECTURE], ONE, bytes(16)), {"w": ("F32", (4,))}),
}
"""Name -> (bytes, the tensors' dtypes and shapes)."""
