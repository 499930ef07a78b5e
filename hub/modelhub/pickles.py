"""Pickles read opcode by opcode, without running them: for checkpoints whose arrays are pickled, and to say what loading one
would import.

Nothing is imported, looked up or called. A global is a `Global`, a call a `Call` of one, a long text or run of bytes a `Run` that
says where it stands: arrays of any size are skipped. Nothing recurses, the memo is a map, opcodes and short texts are counted.
Who knows a library's classes makes sense of the records; who walks them bounds the depth to which it does.
(Opcodes: CPython's ``Lib/pickletools.py``, protocols 0 to 5.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelhub.errors import IncompleteFile, InvalidFile, UnsupportedFile
from modelhub.files import File

MAX_OPCODES = 6_000_000
"""Opcodes of one pickle at the most: some seconds."""
MAX_KEPT = 64 << 20
"""Bytes of short texts that are kept."""
SHORT, SHORT_BYTES = 1 << 12, 64
"""Longer texts, and longer byte strings, are not read: a `Run` says where they stand."""
MAX_LINE = 1 << 12
MAX_INTEGER = 1 << 10
WINDOW = 64 << 10


class Global(NamedTuple):
    """Something that would be imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Run(NamedTuple):
    """A long run of bytes, or (``text``) of UTF-8, in the file from ``start`` on."""

    start: int
    nbytes: int
    text: bool = False


class Opaque:
    """Something that is not kept: a key that is no plain value, an object from outside."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Call:
    """What a call would give: ``function(*args)``, then its ``state`` (BUILD), and what was put or appended to it."""

    function: Any
    args: Any
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pickle:
    """What one pickle holds: the object, where the pickle ends, and every global in the order it is named."""

    value: Any
    end: int
    names: tuple[Global, ...]


_FIXED = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
_SIZED: dict[int, tuple[int, str]] = {
    0x58: (4, "text"), 0x8C: (1, "text"), 0x8D: (8, "text"), 0x55: (1, "old"), 0x54: (4, "old"), 0x43: (1, "bytes"),
    0x42: (4, "bytes"), 0x8E: (8, "bytes"), 0x96: (8, "bytes"),
}  # fmt: skip
"""Opcodes of texts and byte strings: bytes of their length, and what they are. Python 2's strings are either."""
_VALUES: dict[int, Callable[[], Any]] = {
    0x4E: lambda: None, 0x88: lambda: True, 0x89: lambda: False, 0x5D: list, 0x7D: dict, 0x29: tuple, 0x8F: list,
}  # fmt: skip
_NUMBERS = {ord(code): struct.Struct(layout) for code, layout in _FIXED.items()}
_EXTENSIONS = {0x82: 1, 0x83: 2, 0x84: 4}


def read(source: File | bytes, name: str = "", *, start: int = 0, raw: Callable[[Call, int], int] | None = None) -> Pickle:
    """The pickle at ``start`` of a file or of ``bytes`` (``name`` is what errors call them then). ``raw(call, position)``, asked
    after each BUILD, may say that the pickle goes on later, for those who put arrays between opcodes. `IncompleteFile` where
    it ends early, `InvalidFile` where it is none, `UnsupportedFile` where it is longer than one is read."""
    return _Machine(source, name, start, raw).run()


class _Machine:
    def __init__(self, source: File | bytes, name: str, start: int, raw: Callable[[Call, int], int] | None) -> None:
        self.file = None if isinstance(source, bytes) else source
        self.size = len(source) if isinstance(source, bytes) else source.size
        self.window, self.base = (source, 0) if isinstance(source, bytes) else (b"", 0)
        self.name = name or ("a pickle" if isinstance(source, bytes) else source.name)
        self.position, self.raw, self.kept = start, raw, 0
        self.names: dict[Global, None] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def fail(self, why: str) -> InvalidFile:
        return InvalidFile(f"{self.name} is not a readable pickle: {why} at byte {self.position}")

    def take(self, nbytes: int) -> bytes:
        low = self.position - self.base
        if low < 0 or low + nbytes > len(self.window):
            if self.position + nbytes > self.size:
                raise IncompleteFile(f"{self.name}: a pickle at byte {self.position} takes {nbytes} more, it ends at {self.size}")
            if self.file is not None:
                self.base, low = self.position, 0
                self.window = self.file.read(self.base, min(max(nbytes, WINDOW), self.size - self.base))
        self.position += nbytes
        return self.window[low : low + nbytes]

    def line(self, encoding: str = "utf-8") -> str:
        start, parts = self.position, b""
        while len(parts) < MAX_LINE:
            byte = self.take(1)
            if byte == b"\n":
                return parts.decode(encoding, "backslashreplace")
            parts += byte
        self.position = start
        raise self.fail(f"a line without an end in {MAX_LINE} bytes")

    def run(self) -> Pickle:
        try:
            for _ in range(MAX_OPCODES):
                low = self.position - self.base
                if 0 <= low < len(self.window):
                    op = self.window[low]
                    self.position += 1
                else:
                    op = self.take(1)[0]
                if op == 0x2E:  # STOP
                    return Pickle(self.stack.pop(), self.position, tuple(self.names))
                if not (self._value(op) or self._container(op) or self._object(op)):
                    self.position -= 1
                    raise self.fail(f"{op:#04x} is no opcode")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise self.fail("something is taken that was never put, or is of another kind") from error
        raise UnsupportedFile(f"{self.name}: a pickle of more than {MAX_OPCODES} opcodes, which is as far as one is read")

    # --- plain values -----------------------------------------------------------------------------------------------

    def _value(self, op: int) -> bool:
        push = self.stack.append
        if op in _SIZED:
            width, kind = _SIZED[op]
            push(self._long(int.from_bytes(self.take(width), "little"), kind))
        elif op in _NUMBERS:
            push(_NUMBERS[op].unpack(self.take(_NUMBERS[op].size))[0])
        elif op in _VALUES:
            push(_VALUES[op]())
        elif op in (0x8A, 0x8B):  # LONG1, LONG4
            length = int.from_bytes(self.take(1 if op == 0x8A else 4), "little")
            if length > MAX_INTEGER:
                raise self.fail(f"an integer of {length} bytes")
            push(int.from_bytes(self.take(length), "little", signed=True))
        elif op in (0x49, 0x4C):  # INT, LONG
            text = self.line()
            push({"00": False, "01": True}.get(text) if op == 0x49 and text in ("00", "01") else int(text.rstrip("L")))
        elif op == 0x46:  # FLOAT
            push(float(self.line()))
        elif op in (0x53, 0x56):  # STRING, UNICODE
            push(self.line().strip("'\"") if op == 0x53 else self.line("raw-unicode-escape"))
        else:
            return False
        return True

    def _long(self, length: int, kind: str) -> Any:
        if length > self.size - self.position:
            raise IncompleteFile(
                f"{self.name}: {length} bytes at byte {self.position} of a pickle, {self.size - self.position} are left"
            )
        if length > (SHORT_BYTES if kind == "bytes" else SHORT):
            self.position += length
            return Run(self.position - length, length, kind == "text")
        self.kept += length
        if self.kept > MAX_KEPT:
            raise self.fail(f"more than {MAX_KEPT} bytes of short texts")
        data = self.take(length)
        return data if kind == "bytes" else data.decode("utf-8", "surrogatepass" if kind == "text" else "surrogateescape")

    # --- containers, stack and memo -----------------------------------------------------------------------------------

    def _marked(self) -> list[Any]:
        inner, self.stack = self.stack, self.outer.pop()
        return inner

    def _container(self, op: int) -> bool:
        stack = self.stack
        if op in (0x94, 0x71, 0x72, 0x70):  # MEMOIZE, BINPUT, LONG_BINPUT, PUT
            width = {0x71: 1, 0x72: 4}.get(op)
            number = int.from_bytes(self.take(width), "little") if width else int(self.line()) if op == 0x70 else len(self.memo)
            self.memo[number] = stack[-1]
        elif op in (0x68, 0x6A, 0x67):  # BINGET, LONG_BINGET, GET
            width = {0x68: 1, 0x6A: 4}.get(op)
            stack.append(self.memo[int.from_bytes(self.take(width), "little") if width else int(self.line())])
        elif op == 0x28:  # MARK
            self.outer.append(stack)
            self.stack = []
        elif op in (0x85, 0x86, 0x87):  # TUPLE1 to TUPLE3
            count = op - 0x84
            stack[-count:] = [(*stack[-count:],)] if len(stack) >= count else [stack[len(stack)]]
        elif op in (0x74, 0x6C, 0x91):  # TUPLE, LIST, FROZENSET
            inner = self._marked()
            self.stack.append(tuple(inner) if op == 0x74 else inner)
        elif op in (0x64, 0x75):  # DICT, SETITEMS
            inner = self._marked()
            if op == 0x64:
                self.stack.append({})
            self._put(self.stack[-1], inner)
        elif op == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            self._put(stack[-1], [key, value])
        elif op in (0x65, 0x90):  # APPENDS, ADDITEMS
            inner = self._marked()
            self._append(self.stack[-1], inner)
        elif op == 0x61:  # APPEND
            value = stack.pop()
            self._append(stack[-1], [value])
        elif op == 0x30:  # POP
            if stack:
                stack.pop()
            else:
                self._marked()
        elif op == 0x31:  # POP_MARK
            self._marked()
        elif op == 0x32:  # DUP
            stack.append(stack[-1])
        elif op == 0x80:  # PROTO
            if self.take(1)[0] > 5:
                raise self.fail("a protocol that is newer than 5")
        elif op == 0x95:  # FRAME
            self.take(8)
        elif op != 0x98:  # READONLY_BUFFER
            return False
        return True

    def _put(self, target: Any, pairs: list[Any]) -> None:
        found = [(_key(pairs[index]), pairs[index + 1]) for index in range(0, len(pairs), 2)]
        if isinstance(target, Call):
            target.items += found
        elif isinstance(target, dict):
            target.update(found)
        else:
            raise self.fail(f"an item is put into a {type(target).__name__}")

    def _append(self, target: Any, values: list[Any]) -> None:
        if not isinstance(target, Call | list):
            raise self.fail(f"a value is appended to a {type(target).__name__}")
        (target.parts if isinstance(target, Call) else target).extend(values)

    # --- what would import and call ------------------------------------------------------------------------------------

    def _object(self, op: int) -> bool:
        stack = self.stack
        if op == 0x63:  # GLOBAL
            stack.append(self._global(self.line(), self.line()))
        elif op == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise self.fail("a global whose name is no text")
            stack.append(self._global(module, name))
        elif op in (0x52, 0x81):  # REDUCE, NEWOBJ
            args, function = stack.pop(), stack.pop()
            stack.append(Call(function, args))
        elif op == 0x92:  # NEWOBJ_EX
            keywords, args, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(Call(function, args, items=list(keywords.items()) if isinstance(keywords, dict) else []))
        elif op in (0x69, 0x6F):  # INST, OBJ
            function = self._global(self.line(), self.line()) if op == 0x69 else None
            inner = self._marked()
            self.stack.append(Call(function, tuple(inner)) if op == 0x69 else Call(inner[0], tuple(inner[1:])))
        elif op == 0x62:  # BUILD
            state = stack.pop()
            if isinstance(stack[-1], Call):
                stack[-1].state = state if stack[-1].state is None else [stack[-1].state, state]
                if self.raw is not None:
                    after = self.raw(stack[-1], self.position)
                    if not self.position <= after <= self.size:
                        raise IncompleteFile(f"{self.name}: what stands in a pickle ends at {after}, the file at {self.size}")
                    self.position = after
        elif op in _EXTENSIONS:
            number = int.from_bytes(self.take(_EXTENSIONS[op]), "little")
            stack.append(self._global("copyreg", f"extension {number}"))
        elif op == 0x51:  # BINPERSID
            stack[-1] = Opaque()
        elif op == 0x50:  # PERSID
            self.line()
            stack.append(Opaque())
        elif op == 0x97:  # NEXT_BUFFER
            stack.append(Opaque())
        else:
            return False
        return True

    def _global(self, module: str, name: str) -> Global:
        found = Global(module, name)
        self.names[found] = None
        return found


def _key(key: Any) -> Any:
    """A key that is safe to hash."""
    if isinstance(key, str | int | float | bytes) or key is None:
        return key
    if type(key) is tuple and len(key) <= 8 and all(type(item) in (str, int) for item in key):
        return key
    return Opaque()
