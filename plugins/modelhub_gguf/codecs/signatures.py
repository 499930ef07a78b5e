"""Kernels compiled for the one signature that they are called with.

Left to itself, numba compiles a kernel anew for arrays that may be written to and for those that may only be read.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from modelhub_gguf.codecs import jit

_log = logging.getLogger("modelhub.kernels")

_LOCK = threading.Lock()
"""Several threads may want the same kernel first: one compiles it, the others wait."""


def compiled(kernel: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """``kernel`` (of `jit.kernel`), compiled or taken from the cache. ``signature`` has an argument a word: ``int``, ``bool``, or
    an array's dtype and its dimensions (``uint8:2``), with ``!`` where it is written to. All arrays are C-contiguous."""
    with _LOCK:
        return _compiled(kernel, signature)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What a signal's handler raises (Ctrl-C, SIGTERM) is raised at the end of this: LLVM calls back into Python, and what is
    raised there is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: Any) -> None:
        handler = before[signal.Signals(number)]
        try:
            if callable(handler):
                handler(number, frame)
        except BaseException as error:  # noqa: BLE001 (raised below)
            raised.append(error)

    handled = [number for number, handler in before.items() if callable(handler)]
    for number in handled:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
    if raised:
        raise raised[0]


@cache
def _tell() -> None:
    """Say, once, that this takes time."""
    kept = jit.cache_directory()
    where = f"they are kept in {kept}" if kept else "nowhere can they be kept: NUMBA_CACHE_DIR names a place for them"
    _log.info("compiling kernels for this processor, which takes some seconds; %s", where)


@cache
def _compiled(kernel: Callable[..., Any], signature: str) -> Callable[..., Any]:
    numba: Any = import_module("numba")

    def kind_of(word: str) -> Any:
        if word in ("int", "bool"):
            return numba.int64 if word == "int" else numba.boolean
        dtype, dimensions = word.rstrip("!").split(":")
        return numba.types.Array(getattr(numba, dtype), int(dimensions), "C", readonly=not word.endswith("!"))

    dispatcher: Any = kernel
    events: Any = import_module("numba.core.event")
    teller = type("Teller", (events.Listener,), {"on_start": lambda self, event: _tell(), "on_end": lambda self, event: None})
    with undisturbed(), events.install_listener("numba:compile", teller()):  # no such event where the cache has it
        dispatcher.compile(tuple(map(kind_of, signature.split())))
    dispatcher.disable_compile()
    return kernel
