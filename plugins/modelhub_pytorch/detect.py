"""Tells PyTorch checkpoints by their first bytes, and names what is none although it is called like one."""

from __future__ import annotations

import os
import re

from modelhub import Detection, File, FileProblem, InvalidFile, Rejected, group_of

from modelhub_pytorch.archive import Archive
from modelhub_pytorch.legacy import is_legacy

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".pkl", ".jit", ".ptl", ".bin.index.json")
MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
"""Zips, of which the first member tells those that are PyTorch's; and the pickle of the legacy magic number: whatever they are
called now."""
OURS = (".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar", ".ptl", ".jit")
"""Names that mean PyTorch and little else; .bin and .pkl mean anything, but for those of `_SAVED`."""
_SAVED = re.compile(r"((diffusion_)?pytorch|adapter)_model.*\.bin")
"""What transformers, diffusers and peft call their files (``WEIGHTS_NAME`` of each)."""

_MEMBERS = re.compile(
    rb"[^/\0]{1,200}/(data\.pkl|data/[0-9]+|constants\.pkl|version|byteorder|\.format_version|\.data/serialization_id)"
)
_TEXT_PICKLE = re.compile(rb"[(\]}l]{0,4}c[A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n", re.ASCII)
_CONTAINERS = (
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"Rar!\x1a\x07", "RAR"),
)


def detect(file: File) -> Detection | Rejected | None:
    """A checkpoint, a shard or an index of one (which stands for all), or what it is instead. Reads the head, seldom more."""
    name = file.name.lower()
    if name.endswith(".json"):
        return _group(file)
    answer = _content(file, name.endswith(OURS) or _SAVED.fullmatch(name) is not None)
    if isinstance(answer, Detection) and answer.confidence >= 90 and name.endswith(".bin"):
        return _group(file) or answer
    return answer


def _group(file: File) -> Detection | Rejected | None:
    """All shards of one checkpoint, and their index."""
    try:
        group = group_of(file)
    except FileProblem as problem:
        return Rejected(problem.message, confidence=30)
    if group is None:
        return None
    directory = os.path.dirname(file.path)
    names = [*group.present, *([group.index_name] if group.index_name else [])]
    return Detection([os.path.join(directory, name) for name in names], confidence=95, missing=group.missing, name=group.stem)


def _content(file: File, ours: bool) -> Detection | Rejected | None:
    head = file.head
    if head.startswith(b"PK\x03\x04"):
        return _zip(file, ours)
    if is_legacy(head):
        return Detection([file.path], confidence=95)
    if head[257:262] == b"ustar" or _is_old_tar(head):
        if head.startswith((b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")):
            reason = "TAR, older than the legacy format of PyTorch 0.1.10: not read; torch.load(weights_only=False) opens it"
        else:
            reason = "a TAR archive under a PyTorch checkpoint's name: not read; unpack it first"
            if not ours:
                return None
        return Rejected(reason, confidence=60, state="unsupported")
    for magic, title in _CONTAINERS:
        if head.startswith(magic) and (ours or file.name.lower().endswith(".pkl")):
            reason = f"{title} data under a PyTorch checkpoint's name: not read; unpack it first"
            return Rejected(reason, confidence=60 if ours else 20, state="unsupported")
    if head.startswith(b"version https://git-lfs") and ours:
        return Rejected(
            "a Git LFS pointer, the weights are not here; fetch them with: git lfs pull", confidence=60, state="incomplete"
        )
    binary = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if binary or (_TEXT_PICKLE.match(head) and file.tail.rstrip().endswith(b".")):
        # A pickle that is no checkpoint is listed all the same, for what it names; a .bin with such a start may be anything.
        pickle = ours or file.name.lower().endswith(".pkl") or file.tail.endswith(b".")
        return Detection([file.path], confidence=50 if ours else 30) if pickle else None
    if file.name.lower().endswith((".pt", ".pth", ".pth.tar", ".pt.tar")) and not (file.size and head[:256].isascii()):
        # Text is another thing of that name: Python's path files end in .pth too.
        what = "is empty" if not file.size else f"starts with {head[:4].hex(' ')}: neither a zip nor a pickle"
        return Rejected(f"{file.name} {what}", confidence=20)
    return None


def _zip(file: File, ours: bool) -> Detection | Rejected | None:
    """The first member's name tells nearly always; other zips are nobody's business, unless they are called like ours."""
    length = int.from_bytes(file.head[26:28], "little")
    if _MEMBERS.fullmatch(file.head[30 : 30 + length]):
        return Detection([file.path], confidence=95)
    if not ours and not file.name.lower().endswith((".bin", ".pkl")):
        return None
    try:
        Archive(file)
    except InvalidFile as problem:
        return Rejected(problem.message, confidence=30) if ours else None
    except FileProblem as problem:
        return Rejected(problem.message, confidence=60, state="unsupported")
    return Detection([file.path], confidence=90)


def _is_old_tar(head: bytes) -> bool:
    """A tar header without ustar's magic (V7): its checksum is right."""
    block = head[:512]
    if len(block) < 512 or block[148:154].strip(b" 0123456789\0") or not block[0]:
        return False
    try:
        declared = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    return declared == sum(block[:148]) + sum(block[156:]) + 8 * 32
