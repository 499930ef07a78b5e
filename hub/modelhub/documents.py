"""Small JSON files that stand beside weights (a configuration, a shard index), read with bounds.

What they say is for the caller to judge: here they are only shown to be JSON of a bounded size and depth.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from modelhub.errors import InvalidFile
from modelhub.files import File

MAX_DOCUMENT = 64 << 20
"""The longest document read whole: the index of a hundred thousand tensors takes a tenth of it."""


def read_json(file: File, *, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """The JSON object that ``file`` holds. `InvalidFile` where it is longer than ``limit`` bytes, not JSON, nested too deep, or
    not an object. Python's ``NaN`` and ``Infinity`` pass, because Python's own writer leaves them in honest files."""
    if file.size > limit:
        raise InvalidFile(f"{file.name} is {file.size} bytes long; no such document needs more than {limit}")
    raw = file.read(0, file.size)
    try:
        value = orjson.loads(raw)
    except ValueError:
        try:
            value = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
            raise InvalidFile(f"{file.name} is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise InvalidFile(f"{file.name} holds a JSON {type(value).__name__}, an object was expected")
    return value
