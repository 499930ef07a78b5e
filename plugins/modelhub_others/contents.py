"""What the first bytes (seldom more) of a file say: one function a format, None where they say something else.

Each names its source. All reads are bounded; nothing is unpickled or unpacked beyond its first bytes.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence

from modelhub import File, zip_members

from modelhub_others.tails import zip_directory

TENSORRT = b"ftrt"
"""``kPLAN_FILE_TAG`` (TensorRT ``samples/common/sampleEngines.cpp``)."""
APE = b"MZqFpD="
"""How Cosmopolitan's Actually Portable Executables start (``ape/ape.S``)."""
CATBOOST = b"CBM1"
"""``MODEL_FILE_DESCRIPTOR_CHARS`` (CatBoost ``libs/model/model.cpp``)."""
HAILO = b"\x01HEF"
"""HailoRT ``hef/hef_internal.hpp``."""
LITERTLM = b"LITERTLM"
"""LiteRT-LM ``schema/core/litertlm_header.h``."""
DYNET = (b"#Parameter# /", b"#LookupParameter# /")
"""``TextFileSaver`` (DyNet ``dynet/io.cc``)."""
MAX_PREFIX = 1 << 20
MAX_UNPACKED = 64 << 10


def tensorrt(file: File) -> str | None:
    """The tag; behind it the serialisation's version and, at byte 24, TensorRT's own (``printPlanVersion``). Ultralytics puts a
    32-bit length and JSON before it (``engine/exporter.py``)."""
    start, by = 0, ""
    if not file.head.startswith(TENSORRT):
        start = 4 + int.from_bytes(file.head[:4], "little")
        if not 6 <= start <= min(MAX_PREFIX, file.size - 4) or file.head[4:5] != b"{" or file.read(start, 4) != TENSORRT:
            return None
        by = ", exported by Ultralytics"
    if file.size >= start + 28 and file.read(start + 4, 4) == bytes(4):
        version = file.read(start + 24, 4)
        if 1 <= version[0] <= 99:
            return f"a TensorRT {version[0]}.{version[1]}.{version[2]} engine{by}"
    return f"a TensorRT engine{by}"


def dynet(file: File) -> str | None:
    """A line for each parameter: its kind, name, shape and length; then its numbers as text."""
    line = re.match(rb"#(?:Lookup)?Parameter# (/\S{0,200}) \{[\d,X]{1,100}\} \d+ ", file.head)
    return "DyNet's parameters as text" if line else None


def mnn(file: File) -> str | None:
    """FlatBuffers without an identifier (``schema/default/MNN.fbs``): the root's table and its list of fields fit each other."""
    head = file.head
    root = int.from_bytes(head[:4], "little")
    if not 8 <= root <= 64 or root + 4 > len(head):
        return None
    fields = root - int.from_bytes(head[root : root + 4], "little", signed=True)
    if not 4 <= fields <= len(head) - 4:
        return None
    nbytes, table = int.from_bytes(head[fields : fields + 2], "little"), int.from_bytes(head[fields + 2 : fields + 4], "little")
    return "an MNN model" if 4 <= nbytes <= 64 and nbytes % 2 == 0 and 4 <= table <= 256 else None


def mnn_files(file: File) -> Sequence[str]:
    """Large models keep their weights beside them, in ``NAME.mnn.weight``."""
    return [file.name, *(name for name in (f"{file.name}.weight",) if name in (file.siblings or ()))]


def ncnn(file: File) -> str | None:
    """The number 7767517, in text or binary (ncnn's wiki, "param and model file structure"; ``src/net.cpp``)."""
    text = re.match(rb"7767517\r?\n\s*(\d{1,9}) (\d{1,9})\s", file.head)
    if text:
        return f"{'a PNNX' if b'pnnx.' in file.head else 'an ncnn'} model of {int(text[1])} layers"
    binary = file.name.lower().endswith(".param.bin") and file.head[:4] == (7767517).to_bytes(4, "little")
    return "an ncnn model" if binary else None


def ncnn_files(file: File) -> Sequence[str]:
    """The weights have the same stem and no magic number."""
    stem = file.name[: -len(".param.bin" if file.name.lower().endswith(".param.bin") else ".param")]
    return [file.name, *(name for name in (f"{stem}.bin",) if name in (file.siblings or ()))]


def rknn(file: File) -> str | None:
    """The magic that Rockchip's runtime asks for ("invalid RKNN_MAGIC" where it is not there)."""
    return "a Rockchip RKNN model" if file.head[:4] == b"RKNN" else None


def nemo(file: File) -> str | None:
    """A tar, gzipped or not, with ``model_config.yaml`` (NeMo ``core/connectors/save_restore_connector.py``)."""
    head = file.head if not file.head.startswith(b"\x1f\x8b") else unpacked(file)
    name = b"model_config.yaml"
    in_tar = head[257:262] == b"ustar" and any(found.removeprefix(b"./").endswith(name) for found in _tar_names(file, head))
    return "a NeMo archive" if in_tar else None


def _tar_names(file: File, head: bytes, most: int = 256) -> Iterator[bytes]:
    """The names in a tar: those of all its members where it is not compressed, else of those in the first bytes."""
    plain = head is file.head
    at = 0
    for _ in range(most):
        if plain:
            if at + 512 > file.size:
                return
            block = file.read(at, 512)
        else:
            block = head[at : at + 512]
        digits = block[124:136].strip(b" \0")
        if len(block) < 512 or block[257:262] != b"ustar" or not re.fullmatch(rb"[0-7]{0,12}", digits):
            return
        yield block[:100].rstrip(b"\0")
        at += 512 + -(-int(digits or b"0", 8) // 512) * 512


def torchserve(file: File) -> str | None:
    """A zip with ``MAR-INF/MANIFEST.json`` (model-archiver's packaging)."""
    if not file.head.startswith(b"PK\x03\x04"):
        return None
    return "a TorchServe archive" if any(item.name == "MAR-INF/MANIFEST.json" for item in zip_members(file)) else None


def pt2(file: File) -> str | None:
    """A zip whose ``archive_format`` is "pt2" (PyTorch's "PT2 Archive Spec"), or what ``torch.export.save`` wrote before that."""
    if not file.head.startswith(b"PK\x03\x04"):
        return None
    for member in zip_members(file):
        if member.name.rpartition("/")[2] == "archive_format" and member.size == 3 and member.peek(file, 3) == b"pt2":
            return "a program of torch.export"
        if member.name == "serialized_exported_program.json":
            return "a program of torch.export"
    return None


def darknet(file: File) -> str | None:
    """Version 0.1 or 0.2 in three 32-bit numbers, how many images were seen (32 bits, since 0.2 64), then floats alone
    (``src/parser.c``, ``load_weights_upto``)."""
    major, minor, revision = (int.from_bytes(file.head[at : at + 4], "little") for at in (0, 4, 8))
    header = 20 if minor == 2 else 16
    if major or minor not in (1, 2) or revision > 9 or file.size <= header or (file.size - header) % 4:
        return None
    return f"Darknet's weights, {(file.size - header) // 4:,} of them"


def mxnet(file: File) -> str | None:
    """0x112 and zero, 64 bits each, then how many arrays (``src/ndarray/ndarray.cc``, ``kMXAPINDArrayListMagic``)."""
    if file.head[:16] != (0x112).to_bytes(8, "little") + bytes(8) or file.size < 24:
        return None
    return f"MXNet's parameters, {int.from_bytes(file.head[16:24], 'little'):,} arrays"


def torch7(file: File) -> str | None:
    """An object or a table of objects of Lua's Torch, whose version is "V 1" (torch7 ``File.lua``)."""
    kind = int.from_bytes(file.head[:4], "little")
    versioned = re.search(rb"\x03\0\0\0V 1", file.head[:256])
    return "an object of Lua's Torch" if kind in (3, 4) and versioned else None


def catboost(file: File) -> str | None:
    return "a CatBoost model" if file.head.startswith(CATBOOST) else None


def hailo(file: File) -> str | None:
    return "a Hailo executable" if file.head.startswith(HAILO) else None


def litertlm(file: File) -> str | None:
    return "a LiteRT-LM bundle" if file.head.startswith(LITERTLM) else None


def snpe(file: File) -> str | None:
    """A zip with ``dlc.metadata`` (Qualcomm's "Deep Learning Container")."""
    if not file.head.startswith(b"PK\x03\x04"):
        return None
    return "a Qualcomm deep learning container" if any(item.name == "dlc.metadata" for item in zip_members(file)) else None


def mediapipe(file: File) -> str | None:
    """A zip of TensorFlow Lite models ("model asset bundle")."""
    if not file.head.startswith(b"PK\x03\x04"):
        return None
    models = [item.name for item in zip_members(file) if item.name.endswith(".tflite")]
    return f"a MediaPipe task of {len(models)} TensorFlow Lite model{'s' * (len(models) != 1)}" if models else None


def unpacked(file: File) -> bytes:
    """The first bytes of what is compressed; b"" where nothing known is."""
    head = file.head
    try:
        if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
            return zlib.decompressobj().decompress(head, MAX_UNPACKED)
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, MAX_UNPACKED)
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, MAX_UNPACKED)
        if head.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(memlimit=64 << 20).decompress(head, MAX_UNPACKED)
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        return b""
    return b""


def llamafile(file: File) -> str | None:
    """A portable executable whose zip directory names a GGUF (llamafile's README: weights are stored in the executable)."""
    return "a llamafile" if file.head.startswith(APE) and b".gguf" in zip_directory(file) else None
