"""The vectors of `lanes` as numba types: each operation is one LLVM instruction on ``<LANES x float>`` or ``<LANES x i32>``.

LLVM's own vectoriser has no say in it, so that an encoder's speed does not hang on what the vectoriser makes of a loop. No
fast-math flag is set anywhere: nothing is reordered or fused.
"""

# numba and llvmlite say little of their types, and may not be there when types are checked.
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin, lower_cast
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import register_model

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)


class Lanes(types.Type):
    """A vector of lanes; ``kind`` is f, i or m."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        element = {"f": _FLOAT, "i": _INT, "m": ir.IntType(1)}[kind]
        self.llvm = ir.VectorType(element, count)
        super().__init__(name=f"Lanes({kind}{count})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.llvm)


def _spread(builder: Any, kind: Any, scalar: Any) -> Any:
    """``scalar`` in every lane."""
    empty = ir.Constant(kind.llvm, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count))


def _constant(kind: Any, value: Any) -> Any:
    return ir.Constant(kind.llvm, [value] * kind.count)


def _cast(context: Any, builder: Any, have: Any, kind: Any, value: Any) -> Any:
    """A Python or numpy number among vectors: the nearest float32, or an int32."""
    element = types.float32 if kind.kind == "f" else types.int32
    if isinstance(have, types.IntegerLiteral):
        return _constant(kind, float(have.literal_value) if kind.kind == "f" else have.literal_value)
    return _spread(builder, kind, context.cast(builder, value, have, element))


def _pointer(context: Any, builder: Any, kind: Any, array_type: Any, array: Any, row_type: Any, row: Any) -> Any:
    struct = context.make_array(array_type)(context, builder, array)
    row = context.cast(builder, row, row_type, types.intp)
    at = builder.mul(row, ir.Constant(row.type, kind.count))
    return builder.bitcast(builder.gep(struct.data, [at]), kind.llvm.as_pointer())


def _intrinsic(builder: Any, name: str, kind: Any, arguments: Any) -> Any:
    function_type = ir.FunctionType(kind.llvm, [kind.llvm] * len(arguments))
    full = f"llvm.{name}.v{kind.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, full), arguments)


def _define(name: Any, result: Any, arguments: tuple[Any, ...], make: Callable[..., Any]) -> None:
    """Lowers ``name(*arguments) -> result``; ``make(context, builder, *values)``."""

    def lowered(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return make(context, builder, *args)

    lower_builtin(name, *arguments)(lowered if result is not None else make)


def _typed(name: Any, choose: Callable[..., Any]) -> None:
    """``choose(*argument types)`` gives (result, argument types) or None."""

    def generic(self: Any, args: Any, kws: Any) -> Any:
        chosen = None if kws else choose(*args)
        return None if chosen is None else signature(chosen[0], *chosen[1])

    infer_global(name)(type(f"Typing_{getattr(name, '__name__', name)}", (AbstractTemplate,), {"key": name, "generic": generic}))


def _transposed(builder: Any, kind: Any, rows: list[Any]) -> list[Any]:
    """``rows`` as columns: blocks off the diagonal change places, half as large at each pass."""
    count = kind.count
    distance = count // 2
    while distance:
        index = ir.VectorType(_INT, count)
        keep = [c if not c & distance else count + c - distance for c in range(count)]
        move = [c + distance if not c & distance else count + c for c in range(count)]
        for r in range(count):
            if not r & distance:
                a, b = rows[r], rows[r + distance]
                rows[r] = builder.shuffle_vector(a, b, ir.Constant(index, keep))
                rows[r + distance] = builder.shuffle_vector(a, b, ir.Constant(index, move))
        distance //= 2
    return rows


def _gather(kind: Any) -> Callable[..., Any]:
    def lowered(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, offsets = (context.make_array(t)(context, builder, v) for t, v in zip(sig.args[:2], args[:2], strict=True))
        rows = []
        for lane in range(kind.count):
            offset = builder.load(builder.gep(offsets.data, [ir.Constant(ir.IntType(64), lane)]))
            at = builder.gep(data.data, [builder.add(offset, context.cast(builder, args[2], sig.args[2], types.int64))])
            rows.append(builder.load(builder.bitcast(at, kind.llvm.as_pointer()), align=1, typ=kind.llvm))
        first = context.cast(builder, args[4], sig.args[4], types.intp)
        for number, row in enumerate(_transposed(builder, kind, rows)):
            to = builder.add(first, ir.Constant(first.type, number))
            at = _pointer(context, builder, kind, sig.args[3], args[3], types.intp, to)
            builder.store(row, at, align=4)
        return context.get_dummy_value()

    return lowered


def install(names: Mapping[str, Any], count: int) -> None:
    """Teach numba the functions of `lanes` (``names``) and the operators of vectors of ``count`` lanes."""
    f, i, m = Lanes("f", count), Lanes("i", count), Lanes("m", count)
    for kind in (f, i):
        for number in (types.Integer, types.IntegerLiteral, types.Float):
            lower_cast(number, kind)(_cast)

    def binary(a: Any, b: Any) -> Any:
        """The kind of vectors that an operator of ``a`` and ``b`` works on."""
        kind = a if isinstance(a, Lanes) else b
        fine = isinstance(kind, Lanes) and all(x == kind or (isinstance(x, types.Number) and kind.kind != "m") for x in (a, b))
        return kind if fine else None

    def same(*kinds: Any) -> Callable[..., Any]:
        def choose(a: Any, b: Any) -> Any:
            kind = binary(a, b)
            return (kind, (kind, kind)) if kind in kinds else None

        return choose

    def compared(a: Any, b: Any) -> Any:
        kind = binary(a, b)
        return (m, (kind, kind)) if kind in (f, i) else None

    for symbol, floating, integral in (("add", "fadd", "add"), ("sub", "fsub", "sub"), ("mul", "fmul", "mul")):
        op = getattr(operator, symbol)
        _typed(op, same(f, i))
        _define(op, f, (f, f), lambda c, b, x, y, n=floating: getattr(b, n)(x, y))
        _define(op, i, (i, i), lambda c, b, x, y, n=integral: getattr(b, n)(x, y))
    _typed(operator.truediv, same(f))
    _define(operator.truediv, f, (f, f), lambda c, b, x, y: b.fdiv(x, y))
    for op, name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.xor, "xor")):
        _typed(op, same(i, m))
        for kind in (i, m):
            _define(op, kind, (kind, kind), lambda c, b, x, y, n=name: getattr(b, n)(x, y))
    for op, name in ((operator.lshift, "shl"), (operator.rshift, "ashr")):
        _typed(op, same(i))
        _define(op, i, (i, i), lambda c, b, x, y, n=name: getattr(b, n)(x, y))
    for symbol, sign in (("lt", "<"), ("gt", ">"), ("le", "<="), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
        op = getattr(operator, symbol)
        _typed(op, compared)
        made = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"
        _define(op, m, (f, f), lambda c, b, x, y, s=sign, n=made: getattr(b, n)(s, x, y))
        _define(op, m, (i, i), lambda c, b, x, y, s=sign: b.icmp_signed(s, x, y))
    _typed(operator.neg, lambda a: (a, (a,)) if a == f else None)
    _define(operator.neg, f, (f,), lambda c, b, x: b.fneg(x))
    _typed(operator.invert, lambda a: (a, (a,)) if a == m else None)
    _define(operator.invert, m, (m,), lambda c, b, x: b.not_(x))

    def called(name: str, choose: Callable[..., Any], *definitions: tuple[Any, tuple[Any, ...], Callable[..., Any]]) -> None:
        _typed(names[name], choose)
        for result, arguments, make in definitions:
            _define(names[name], result, arguments, make)

    def one(have: Any, want: Any) -> Callable[..., Any]:
        return lambda a: (want, (have,)) if a == have else None

    called("splat", lambda a: (f, (f,)) if isinstance(a, types.Number) else None, (f, (f,), lambda c, b, x: x))
    called("whole", lambda a: (i, (i,)) if isinstance(a, types.Number) else None, (i, (i,), lambda c, b, x: x))
    called("bits", one(f, i), (i, (f,), lambda c, b, x: b.bitcast(x, i.llvm)))
    called("floats", one(i, f), (f, (i,), lambda c, b, x: b.bitcast(x, f.llvm)))
    called("to_float", one(i, f), (f, (i,), lambda c, b, x: b.sitofp(x, f.llvm)))
    called("to_int", one(f, i), (i, (f,), lambda c, b, x: b.fptosi(x, i.llvm)))
    called("magnitude", one(f, f), (f, (f,), lambda c, b, x: _intrinsic(b, "fabs", f, [x])))
    called("square_root", one(f, f), (f, (f,), lambda c, b, x: _intrinsic(b, "sqrt", f, [x])))
    called("near", one(f, f), (f, (f,), lambda c, b, x: _intrinsic(b, "rint", f, [x])))
    packed = ir.IntType(count)
    some = lambda c, b, x: b.icmp_unsigned("!=", b.bitcast(x, packed), ir.Constant(packed, 0))  # noqa: E731
    called("anywhere", one(m, types.boolean), (types.boolean, (m,), some))
    called(
        "shift_right",
        lambda a, n: (i, (i, i)) if a == i and isinstance(n, types.Integer) else None,
        (i, (i, i), lambda c, b, x, n: b.lshr(x, n)),
    )

    def choice(mask: Any, yes: Any, no: Any) -> Any:
        kind = binary(yes, no)
        return (kind, (m, kind, kind)) if mask == m and kind in (f, i) else None

    called("select", choice, *((k, (m, k, k), lambda c, b, x, y, z: b.select(x, y, z)) for k in (f, i)))

    def kind_of(array: Any) -> Any:
        fine = isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C"
        return {types.float32: f, types.int32: i}.get(array.dtype) if fine else None

    def loaded(array: Any, row: Any) -> Any:
        kind = kind_of(array)
        return (kind, (array, types.intp)) if kind is not None and isinstance(row, types.Integer) else None

    def stored(array: Any, row: Any, value: Any) -> Any:
        kind = kind_of(array)
        return (types.none, (array, types.intp, kind)) if kind is not None and value == kind else None

    def gathered(data: Any, offsets: Any, shift: Any, array: Any, row: Any) -> Any:
        return types.none, (data, offsets, types.intp, array, types.intp)

    _typed(names["gather"], gathered)
    _define(names["gather"], None, (types.Array, types.Array, types.Integer, types.Array, types.Integer), _gather(i))
    _typed(names["load"], loaded)
    _typed(names["store"], stored)

    @lower_builtin(names["load"], types.Array, types.Integer)
    def load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = _pointer(context, builder, sig.return_type, sig.args[0], args[0], sig.args[1], args[1])
        return builder.load(at, align=4, typ=sig.return_type.llvm)

    @lower_builtin(names["store"], types.Array, types.Integer, Lanes)
    def store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = _pointer(context, builder, sig.args[2], sig.args[0], args[0], sig.args[1], args[1])
        builder.store(args[2], at, align=4)
        return context.get_dummy_value()
