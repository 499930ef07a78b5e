"""How the daemon and its workers talk: one JSON object a line, over pipes. Paths that are not UTF-8 keep their bytes
(surrogateescape, which JSON writes as ``\\udcXX``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

MAX_LINE = 64 << 20
"""Bytes of the longest message; a worker that sends more is not one of ours."""


def pack(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


class Lines:
    """The messages that arrive on a pipe, as far as they are there. ``ended``: the other end is closed."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.ended = False
        self._rest = b""
        os.set_blocking(handle, False)

    def read(self) -> Iterator[Message]:
        while not self.ended:
            try:
                data = os.read(self.handle, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.ended = True
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_LINE:
                self.ended = True
                return
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict):
                    yield message
