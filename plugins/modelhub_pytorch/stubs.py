"""What stands for the objects of a pickle while it is read: inert records. None of them can run, import or look anything up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Builder = Callable[[tuple[Any, ...]], Any]


class Global:
    """A module's attribute that a pickle names. It is not looked up. ``build`` makes our own record of a call to it (a tensor
    from its parts), None where a call stays a `Call`. ``allowed``: on the allow-list."""

    __slots__ = ("allowed", "build", "module", "name")

    def __init__(self, module: str, name: str, allowed: bool, build: Builder | None = None) -> None:
        self.module = module
        self.name = name
        self.allowed = allowed
        self.build = build


class Call:
    """An object that would come of a call that is not made: of what, with which arguments, and what the pickle then gives it."""

    __slots__ = ("args", "function", "items", "parts", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None
        self.parts: list[Any] | None = None


class Blob:
    """A long run of bytes in the pickle, which nobody needs."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class Opaque:
    """A dictionary key that is neither text nor number. Compared by identity: hashing a deep tuple crashes the interpreter."""

    __slots__ = ()


class Storage:
    """A storage that a pickle refers to: ``numel`` elements of ``dtype`` (one of ours; "" for untyped bytes) under ``key``, of
    which a legacy view takes those from ``view`` on."""

    __slots__ = ("area", "dtype", "itemsize", "key", "location", "numel", "view", "whole")

    def __init__(self, area: str, key: str, dtype: str, itemsize: int, numel: int, location: str) -> None:
        self.area = area
        self.key = key
        self.dtype = dtype
        self.itemsize = itemsize
        self.whole = numel
        self.numel = numel
        self.view = 0
        self.location = location


class TensorRef:
    """A tensor over a `Storage`; ``offset`` and ``strides`` count elements. ``quantizer``: (scale, zero point) or (scales, zero
    points, axis). ``parts``: what a tensor subclass wraps."""

    __slots__ = ("dtype", "offset", "parts", "quantizer", "shape", "storage", "strides", "unsupported")

    def __init__(
        self,
        storage: Storage | None,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...] = (),
        offset: int = 0,
        unsupported: str = "",
    ) -> None:
        self.storage = storage
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.unsupported = unsupported
        self.quantizer: tuple[Any, ...] | None = None
        self.parts: Any = None
