"""The pickle machine, reduced to bookkeeping: it reads opcodes and builds inert records (`modelhub_pytorch.stubs`).

Not `pickle.Unpickler` with everything forbidden: that still hashes deep tuples until the interpreter crashes, allocates a memo of
2^31 entries, and reads frames of 2^40 bytes. Here every length is checked against what is left, the memo is a map, keys are text
or numbers, and nothing recurses. Nothing is imported, looked up or called: each global goes to ``resolve``, each call to an
inert record. Opcodes are those of CPython's ``Lib/pickletools.py``, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from modelhub import InvalidFile

from modelhub_pytorch.allow import Report
from modelhub_pytorch.lexer import names_behind
from modelhub_pytorch.stubs import Blob, Call, Global, Opaque, Storage, TensorRef

MAX_OPCODES = 32 << 20
"""Opcodes (counted by their bytes, long strings left out) that one pickle may have: a few hundred thousand tensors."""
MAX_LINE = 4096
"""The longest line of a text opcode (a module's name, a number)."""
MAX_INTEGER = 1024
"""Bytes of the longest integer."""
SHORT_BYTES = 1 << 16
"""Longer byte strings are skipped."""

_U16, _U32, _I32, _U64, _F64 = (struct.Struct(code).unpack_from for code in ("<H", "<I", "<i", "<Q", ">d"))


class Exhausted(Exception):
    """The buffer ends in the pickle, though its file goes on: try again with more of it."""


class Machine:
    """Reads one pickle out of ``data``. ``more``: bytes of the file that follow ``data``, 0 where it is all there is.

    ``resolve(module, name)`` gives the `Global`; ``persistent(id)`` what a persistent id stands for. What is not innocent goes
    to ``report``.
    """

    def __init__(
        self,
        data: bytes,
        what: str,
        resolve: Callable[[str, str], Global],
        persistent: Callable[[Any], Any],
        report: Report,
        more: int = 0,
    ) -> None:
        self.data = data
        self.what = what
        self.resolve = resolve
        self.persistent = persistent
        self.report = report
        self.more = more
        self.attributes: list[tuple[Any, Any]] = []
        """(object, state) of each BUILD on a plain container: torch keeps ``_metadata`` there."""

    def fail(self, position: int, why: str) -> InvalidFile:
        return InvalidFile(f"{self.what} is not a readable pickle: {why} at byte {position}")

    def load(self, start: int = 0) -> tuple[Any, int]:
        """(the object, the position after its STOP). `InvalidFile` where the pickle is broken, `Exhausted` where ``data`` ends
        early."""
        try:
            return self._loop(start)
        except (IndexError, struct.error) as error:
            # Either the data end inside an opcode, or the stack has nothing left to take; ``_loop`` leaves where it stood.
            if self.position >= len(self.data) - 9 and self.more:
                raise Exhausted from error
            names_behind(self.data, self.position, MAX_OPCODES, self.resolve, self.report)
            raise self.fail(self.position, "it ends in the middle, or takes what it never put") from error
        except InvalidFile:  # we are strict; a program that is not would read on, and call what comes
            names_behind(self.data, self.position, MAX_OPCODES, self.resolve, self.report)
            raise

    def _loop(self, pos: int) -> tuple[Any, int]:
        data, resolve = self.data, self.resolve
        size = len(data)
        memo: dict[int, Any] = {}
        stack: list[Any] = []
        outer: list[list[Any]] = []
        frame_end = 0
        budget = pos + MAX_OPCODES
        fence = min(budget, size)
        self.position = pos
        op = 0
        try:
            while True:
                if pos >= fence:
                    if frame_end and pos >= frame_end:
                        if pos > frame_end:
                            self.report.note("an opcode straddles the end of its FRAME: readers disagree on what follows")
                        frame_end = 0
                    if pos >= budget:
                        raise self.fail(pos, f"more than {MAX_OPCODES} bytes of opcodes")
                    fence = min(budget, size, frame_end or size)
                op = data[pos]
                pos += 1
                # In the order of how often checkpoints use them.
                if op == 0x72:  # LONG_BINPUT
                    memo[_U32(data, pos)[0]] = stack[-1]
                    pos += 4
                elif op == 0x68:  # BINGET
                    stack.append(memo[data[pos]])
                    pos += 1
                elif op == 0x4B:  # BININT1
                    stack.append(data[pos])
                    pos += 1
                elif op == 0x71:  # BINPUT
                    memo[data[pos]] = stack[-1]
                    pos += 1
                elif op == 0x28:  # MARK
                    outer.append(stack)
                    stack = []
                elif op == 0x58:  # BINUNICODE
                    pos += 4
                    end = pos + _U32(data, pos - 4)[0]
                    if end > size:
                        raise self.short(pos, end)
                    stack.append(data[pos:end].decode("utf-8", "surrogatepass"))
                    pos = end
                elif op == 0x74:  # TUPLE
                    items = tuple(stack)
                    stack = outer.pop()
                    stack.append(items)
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    stack[-1] = self.call(stack[-1], args, "REDUCE")
                elif op == 0x4D:  # BININT2
                    stack.append(_U16(data, pos)[0])
                    pos += 2
                elif op == 0x4A:  # BININT
                    stack.append(_I32(data, pos)[0])
                    pos += 4
                elif op == 0x51:  # BINPERSID
                    stack[-1] = self.persistent(stack[-1])
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif op == 0x86:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x6A:  # LONG_BINGET
                    stack.append(memo[_U32(data, pos)[0]])
                    pos += 4
                elif op == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif op == 0x8C:  # SHORT_BINUNICODE
                    end = pos + 1 + data[pos]
                    if end > size:
                        raise self.short(pos, end)
                    stack.append(data[pos + 1 : end].decode("utf-8", "surrogatepass"))
                    pos = end
                elif op == 0x87:  # TUPLE3
                    last, middle = stack.pop(), stack.pop()
                    stack[-1] = (stack[-1], middle, last)
                elif op == 0x88:  # NEWTRUE
                    stack.append(True)
                elif op == 0x75 or op == 0x73:  # SETITEMS, SETITEM
                    if op == 0x75:
                        pairs, stack = stack, outer.pop()
                    else:
                        value = stack.pop()
                        pairs = [stack.pop(), value]
                    self.set_items(stack[-1], pairs, pos)
                elif op == 0x63:  # GLOBAL
                    module, pos = self.line(pos)
                    name, pos = self.line(pos)
                    stack.append(resolve(module, name))
                elif op == 0x93:  # STACK_GLOBAL
                    dotted, holder = stack.pop(), stack.pop()
                    if type(dotted) is not str or type(holder) is not str:
                        raise self.fail(pos, "STACK_GLOBAL of something that is not text")
                    stack.append(resolve(holder, dotted))
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_F64(data, pos)[0])
                    pos += 8
                elif op == 0x7D:  # EMPTY_DICT
                    stack.append({})
                elif op == 0x5D or op == 0x8F:  # EMPTY_LIST, EMPTY_SET (a set is kept as a list)
                    stack.append([])
                elif op in (0x65, 0x61, 0x90):  # APPENDS, APPEND, ADDITEMS
                    if op == 0x61:
                        values = [stack.pop()]
                    else:
                        values, stack = stack, outer.pop()
                    self.append(stack[-1], values, pos)
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    self.build(stack[-1], state)
                elif op == 0x81:  # NEWOBJ
                    args = stack.pop()
                    stack[-1] = self.call(stack[-1], args, "NEWOBJ")
                elif op == 0x95:  # FRAME
                    pos += 8
                    end = pos + _U64(data, pos - 8)[0]
                    if frame_end and pos < frame_end:
                        self.report.note("a FRAME begins inside another: readers disagree on what follows")
                    if end > size + self.more:
                        self.report.note(
                            f"a FRAME reaches {end - size - self.more} bytes past the end: readers disagree on what follows"
                        )
                    frame_end = end
                    fence = min(budget, size, end)
                elif op == 0x80:  # PROTO
                    if data[pos] > 5:
                        raise self.fail(pos, f"protocol {data[pos]}")
                    pos += 1
                elif op == 0x2E:  # STOP
                    if frame_end and pos != frame_end:
                        self.report.note("the pickle does not end where its FRAME does: readers disagree on what it says")
                    return stack.pop(), pos
                elif op == 0x8A:  # LONG1
                    end = pos + 1 + data[pos]
                    if end > size:
                        raise self.short(pos, end)
                    stack.append(int.from_bytes(data[pos + 1 : end], "little", signed=True))
                    pos = end
                elif op in _BYTES:
                    width = _BYTES[op]
                    length = int.from_bytes(data[pos : pos + width], "little")
                    pos += width
                    if pos + length > size:
                        raise self.short(pos, pos + length)
                    stack.append(self.long_bytes(op, pos, length))
                    pos += length
                    if length > SHORT_BYTES:
                        budget += length
                        fence = min(budget, size, frame_end or size)
                else:
                    stack, pos = self.rare(op, pos, stack, outer, memo)
        except KeyError as error:
            raise self.fail(pos, "it takes from its memo what it never put") from error
        except UnicodeDecodeError as error:
            raise self.fail(pos, "text that is not UTF-8") from error
        finally:
            self.position = pos

    # --- opcodes that checkpoints seldom use ----------------------------------------------------------------------

    def rare(self, op: int, pos: int, stack: list[Any], outer: list[list[Any]], memo: dict[int, Any]) -> tuple[list[Any], int]:
        """Carry out one opcode; the stack and the position after it."""
        if op == 0x30:  # POP: of a mark, where nothing stands above it
            if stack:
                stack.pop()
            else:
                stack = outer.pop()
        elif op == 0x31:  # POP_MARK
            stack = outer.pop()
        elif op == 0x32:  # DUP
            stack.append(stack[-1])
        elif op == 0x92:  # NEWOBJ_EX
            kwargs, args = stack.pop(), stack.pop()
            stack[-1] = self.call(stack[-1], (*args, kwargs) if type(args) is tuple and kwargs else args, "NEWOBJ_EX")
        elif op in (0x6C, 0x91):  # LIST, FROZENSET
            items, stack = stack, outer.pop()
            stack.append(items)
        elif op == 0x64:  # DICT
            pairs, stack = stack, outer.pop()
            made: dict[Any, Any] = {}
            self.set_items(made, pairs, pos)
            stack.append(made)
        elif op in (0x67, 0x70):  # GET, PUT
            text, pos = self.line(pos)
            if op == 0x67:
                stack.append(memo[self.number(text, pos)])
            else:
                memo[self.number(text, pos)] = stack[-1]
        elif op in (0x49, 0x4C):  # INT (also of booleans), LONG
            text, pos = self.line(pos)
            stack.append(
                {"00": False, "01": True}[text] if op == 0x49 and text in ("00", "01") else self.number(text.rstrip("L"), pos)
            )
        elif op == 0x46:  # FLOAT
            text, pos = self.line(pos)
            try:
                stack.append(float(text))
            except ValueError as error:
                raise self.fail(pos, "a FLOAT that is none") from error
        elif op in (0x53, 0x56):  # STRING, UNICODE: escapes are left as they stand
            end = self.data.find(b"\n", pos)
            if end < 0:
                raise self.short(pos, len(self.data) + 1)
            stack.append(self.data[pos:end].decode("latin-1").strip("'\"" if op == 0x53 else ""))
            pos = end + 1
        elif op == 0x8B:  # LONG4
            length = _I32(self.data, pos)[0]
            pos += 4
            if not 0 <= length <= MAX_INTEGER:
                raise self.fail(pos, f"an integer of {length} bytes")
            if pos + length > len(self.data):
                raise self.short(pos, pos + length)
            stack.append(int.from_bytes(self.data[pos : pos + length], "little", signed=True))
            pos += length
        elif op == 0x69:  # INST
            module, pos = self.line(pos)
            name, pos = self.line(pos)
            args, stack = tuple(stack), outer.pop()
            stack.append(self.call(self.resolve(module, name), args, "INST"))
        elif op == 0x6F:  # OBJ
            function, args = stack[0], tuple(stack[1:])
            stack = outer.pop()
            stack.append(self.call(function, args, "OBJ"))
        elif op in _EXTENSIONS:  # EXT1, EXT2, EXT4: a global by a number that only the reading program's registry knows
            width = _EXTENSIONS[op]
            code = int.from_bytes(self.data[pos : pos + width], "little")
            pos += width
            self.report.note(f"extension code {code} names a global of the reader's own registry (EXT{width})")
            stack.append(Call(None, ()))
        elif op == 0x50:  # PERSID
            text, pos = self.line(pos)
            stack.append(self.persistent(text))
        else:
            name = {0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER"}.get(op, f"byte {op:#04x}")
            raise self.fail(pos - 1, f"{name} is no opcode of a checkpoint")
        return stack, pos

    def short(self, position: int, end: int) -> Exception:
        if end <= len(self.data) + self.more:
            return Exhausted()
        return self.fail(position, f"{end - position} bytes are declared, {len(self.data) + self.more - position} are left")

    def line(self, pos: int) -> tuple[str, int]:
        end = self.data.find(b"\n", pos, pos + MAX_LINE)
        if end < 0:
            if pos + MAX_LINE > len(self.data) and self.more:
                raise Exhausted
            raise self.fail(pos, f"a line without an end in {MAX_LINE} bytes")
        return self.data[pos:end].decode("utf-8", "backslashreplace"), end + 1

    def number(self, text: str, pos: int) -> int:
        try:
            return int(text)
        except ValueError as error:
            raise self.fail(pos, "a number that is none") from error

    def long_bytes(self, op: int, pos: int, length: int) -> Any:
        if op == 0x8D:  # BINUNICODE8
            return self.data[pos : pos + length].decode("utf-8", "surrogatepass")
        if length > SHORT_BYTES:
            return Blob(length)
        data = self.data[pos : pos + length]
        # Python 2's text is Python 3's bytes; torch.load takes it for UTF-8.
        return data.decode("utf-8", "surrogateescape") if op in (0x55, 0x54) else data

    # --- what opcodes do to objects -------------------------------------------------------------------------------

    def call(self, function: Any, args: Any, how: str) -> Any:
        """What a call would give, without making it."""
        if type(function) is Global:
            if function.build is not None and type(args) is tuple:
                return function.build(args)
            if not function.allowed:
                self.report.use(function, how)
        elif type(function) is not Call:  # a call of a call: what made the inner one is reported already
            self.report.note(f"a {_kind(function)} is called ({how})")
        return Call(function, args)

    def set_items(self, target: Any, pairs: list[Any], pos: int) -> None:
        if len(pairs) % 2:
            raise self.fail(pos, "a key without a value")
        if type(target) is Call:
            target.items = target.items if target.items is not None else {}
            if type(target.function) is Global and not target.function.allowed:
                self.report.use(target.function, "SETITEM")
            target = target.items
        if type(target) is not dict:
            raise self.fail(pos, f"an item is set on a {_kind(target)}")
        for index in range(0, len(pairs), 2):
            key = pairs[index]
            target[key if type(key) is str else _key(key)] = pairs[index + 1]

    def append(self, target: Any, values: list[Any], pos: int) -> None:
        if type(target) is Call:
            if type(target.function) is Global and not target.function.allowed:
                self.report.use(target.function, "APPEND")
            target.parts = target.parts if target.parts is not None else []
            target = target.parts
        if type(target) is not list:
            raise self.fail(pos, f"a value is appended to a {_kind(target)}")
        target.extend(values)

    def build(self, target: Any, state: Any) -> None:
        if type(target) is Call:
            if type(target.function) is Global and not target.function.allowed:
                self.report.use(target.function, "BUILD")
            target.state = state if target.state is None else [target.state, state]
        elif type(target) in (dict, list):
            self.attributes.append((target, state))
        elif type(target) is TensorRef:
            if target.parts is None:
                target.parts = state
        elif type(target) is Global:
            self.report.note(f"attributes are set on {self.report.show(target)} itself (BUILD)")
        elif type(target) is not Storage:
            self.report.note(f"attributes are set on a {_kind(target)} (BUILD)")


_BYTES = {0x55: 1, 0x54: 4, 0x43: 1, 0x42: 4, 0x8E: 8, 0x8D: 8, 0x96: 8}
"""[SHORT_]BINSTRING, [SHORT_]BINBYTES, BINBYTES8, BINUNICODE8, BYTEARRAY8 -> bytes of their length."""
_EXTENSIONS = {0x82: 1, 0x83: 2, 0x84: 4}


def _kind(value: Any) -> str:
    return {Global: "global", TensorRef: "tensor", Storage: "storage"}.get(type(value), type(value).__name__)


def _key(key: Any) -> Any:
    """A dictionary's key as one that is safe to hash: numbers, None, short bytes, flat tuples of text and numbers."""
    if type(key) in (str, int, bool, float, bytes) or key is None:
        return key
    if type(key) is tuple and len(key) <= 8 and all(type(item) in (str, int) for item in key):
        return key
    return Opaque()
