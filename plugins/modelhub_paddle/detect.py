"""Which files are Paddle's, and which of them are one model.

``.pdmodel``: a ProgramDesc, whose first block has the index 0 (``framework.proto``); since Paddle 3 a program is JSON whose base
code is "pir" (``pir/serialize_deserialize``). ``.pdiparams``: tensors, each with two versions (0), no levels of detail, and a
TensorDesc (``dense_tensor_serialize.cc``). ``.pdparams``, ``.pdopt``: pickles.
"""

from __future__ import annotations

import os
import re

from modelhub import Detection, File

PROGRAM, PARAMS, PICKLES = ".pdmodel", ".pdiparams", (".pdparams", ".pdopt")
_BLOCK = re.compile(rb"\x0a[\x80-\xff]{0,4}[\x00-\x7f]\x08\x00\x10")
_PIR = re.compile(rb'\s*\{\s*"base_code"\s*:\s*\{[^{}]{0,200}"pir"')


def detect(file: File) -> Detection | None:
    """By content; an inference model is its program, its parameters and what is noted of them."""
    head, name = file.head, file.name.lower()
    if name.endswith(PICKLES):
        is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        return Detection([file.path], confidence=90) if is_pickle else None
    if name.endswith(PROGRAM):
        found = is_program(head)
    elif name.endswith(PARAMS):
        found = is_tensor(head)
    else:
        found = bool(_PIR.match(head))
    if not found:
        return None
    names = [file.stem + suffix for suffix in (PROGRAM, ".json", PARAMS, f"{PARAMS}.info")]
    beside = [name for name in names if name == file.name or (name in (file.siblings or ()) and not name.endswith(".json"))]
    program = f"{file.stem}.json"
    if program not in beside and program in (file.siblings or ()) and _is_program(file, program):
        beside.insert(0, program)
    lost = [names[2]] if names[2] not in beside and names[2] not in (file.siblings or ()) and _has_parameters(file) else []
    directory = os.path.dirname(file.path)
    return Detection([os.path.join(directory, name) for name in beside], confidence=92, missing=lost, name=file.stem)


def is_program(head: bytes) -> bool:
    return bool(_BLOCK.match(head))


def is_tensor(head: bytes) -> bool:
    described = int.from_bytes(head[16:20], "little")
    return len(head) > 20 and head[:16] == bytes(16) and 2 <= described <= 4096 and head[20:21] == b"\x08"


def _is_program(file: File, name: str) -> bool:
    with File(os.path.join(os.path.dirname(file.path), name)) as other:
        return bool(_PIR.match(other.head))


def _has_parameters(file: File) -> bool:
    """Whether a program by itself names parameters: then their file is missing."""
    from modelhub_paddle.program import parameters

    return bool(parameters(file))
