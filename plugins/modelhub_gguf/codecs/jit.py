"""Where the encoders' kernels are compiled, and where compiled code is kept from run to run.

numba is optional. Without it (or under ``NUMBA_DISABLE_JIT=1``) the same functions run on numpy arrays: to the same bits, slower.
Compiled code is kept in ``$NUMBA_CACHE_DIR``, or else in ``cache/kernels`` of modelhub's home, apart for each version of these
sources and of numba and for each kind of processor; where nothing can be written there, kernels are compiled anew by each process
that needs them.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, TypeVar

from modelhub import home

_log = logging.getLogger("modelhub.kernels")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@cache
def available() -> bool:
    """Whether kernels are compiled: numba is installed, works here, and is not disabled."""
    if find_spec("numba") is None:
        return False
    try:
        numba = import_module("numba")
        import_module("llvmlite.binding").get_host_cpu_name()
    except (ImportError, OSError, RuntimeError):  # a numba that does not suit this numpy or this machine is as good as none
        return False
    return not numba.config.DISABLE_JIT


@cache
def tell_if_slow() -> None:
    """Say, once, that NumPy does the compiler's work."""
    if not available():
        _log.info("encoding takes longer without numba (the extra 'fast'), which is %s", _why_not())


def _why_not() -> str:
    if find_spec("numba") is None:
        return "not installed"
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
    return "disabled by NUMBA_DISABLE_JIT" if disabled else "installed, but does not work here"


@cache
def cache_directory() -> str | None:
    """Where compiled kernels are kept, or None where nothing can be written there."""
    import hashlib

    digest = hashlib.sha256()
    here = os.path.dirname(__file__)
    for name in sorted(os.listdir(here)):
        if name.endswith(".py"):
            with open(os.path.join(here, name), "rb") as file:
                digest.update(file.read())
    processor = import_module("llvmlite.binding").get_host_cpu_name()
    version = f"{digest.hexdigest()[:12]}-{metadata.version('numba')}-{processor}"
    path = os.path.join(os.environ.get("NUMBA_CACHE_DIR") or os.path.join(home.home(), "cache", "kernels"), version)
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path


def inlined(function: _Function) -> _Function:
    """A part of kernels, compiled into each of them."""
    if not available():
        return function
    compiled: _Function = import_module("numba").njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return compiled


def kernel(function: _Function) -> _Function:
    """An entry point: compiled at its first call, for the types of its arguments; holds no lock while it runs."""
    if not available():
        return function
    numba = import_module("numba")
    directory = cache_directory()
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = directory or ""  # read when the function is decorated, and nowhere after
    try:
        compiled: _Function = numba.njit(nogil=True, error_model="numpy", cache=directory is not None)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled
