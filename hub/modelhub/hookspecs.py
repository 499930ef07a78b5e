"""Every hook that modelhub calls. A plugin implements any of them with `modelhub.hookimpl`, and declares its module in the
entry-point group ``modelhub``.

Plugins declare capabilities as records; the core decides what becomes of them. No hook returns "the first result": when two
formats claim a file, both claims stay visible.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from modelhub.declared import Check, Codec, Combination, Conversion, Event, Format, Op, Program, Recipe

hookspec = pluggy.HookspecMarker("modelhub")
hookimpl = pluggy.HookimplMarker("modelhub")


@hookspec
def modelhub_formats() -> Iterable[Format]:
    """The checkpoint formats that this plugin can detect, read or write.

    Example::

        from modelhub import Detection, Extent, Format, Tensor, hookimpl

        def detect(file):
            return Detection([file.path], confidence=90) if file.head.startswith(b"RAWF32") else None

        def read(checkpoint):
            file = checkpoint.primary
            count = (file.size - 8) // 4
            yield Tensor("values", "F32", (count,), Extent(file.path, 8, count * 4))

        @hookimpl
        def modelhub_formats():
            yield Format(name="raw", title="Raw floats", suffixes=(".raw",), detect=detect, read=read)
    """
    return ()


@hookspec
def modelhub_codecs() -> Iterable[Codec]:
    """Codecs, one for each dtype that this plugin can decode or encode. The dtype is registered with `modelhub.dtypes.register`.

    Example::

        import numpy as np
        from modelhub import Codec, DType, dtypes, hookimpl

        dtypes.register(DType("HALVES", 1, kind="quantized", numpy="|u1"))

        @hookimpl
        def modelhub_codecs():
            yield Codec(
                dtype="HALVES",
                decode=lambda data, elements: data.astype(np.float32) / 2,
                encode=lambda values: np.rint(values * 2).astype(np.uint8),
                maximum=127.5,
            )
    """
    return ()


@hookspec
def modelhub_ops() -> Iterable[Op]:
    """Ops: nodes of tensor expressions, for values that are not one run of bytes.

    Example::

        from modelhub import Op, hookimpl

        def negate(sources, args, start, stop):
            return -sources[0].read(start, stop)

        @hookimpl
        def modelhub_ops():
            yield Op(name="example.negate", rows=negate, infer=lambda inputs, args: inputs[0])
    """
    return ()


@hookspec
def modelhub_recipes() -> Iterable[Recipe]:
    """Recipes: which dtype each tensor of an output gets.

    Example::

        from modelhub import Recipe, hookimpl

        def choose(tensor, table):
            return "F16" if tensor.dtype == "F32" and len(tensor.shape) > 1 else None

        @hookimpl
        def modelhub_recipes():
            yield Recipe(name="f16-matrices", title="Matrices in F16, the rest as it is", choose=choose)
    """
    return ()


@hookspec
def modelhub_conversions() -> Iterable[Conversion | Program | Combination]:
    """Conversions that are more than a copy of tensors: a table derived from tables, or a program to run; and how what only
    changes other checkpoints (an adapter) is put on them.

    Example::

        from dataclasses import replace
        from modelhub import Conversion, Table, hookimpl

        def derive(sources, options):
            tensors = tuple(tensor._replace(name="model." + tensor.name) for tensor in sources[0].logical)
            return replace(sources[0], tensors=tensors)

        @hookimpl
        def modelhub_conversions():
            yield Conversion(name="prefixed", source="raw", target="safetensors", derive=derive)
    """
    return ()


@hookspec
def modelhub_checks() -> Iterable[Check]:
    """Validators of structure, safety, values, or whether a checkpoint runs.

    Example::

        from modelhub import Check, Finding, hookimpl

        def no_empty_tensors(checkpoint, table):
            for tensor in table.stored:
                if 0 in tensor.shape:
                    yield Finding("no-empty-tensors", "warning", "has no elements", tensor=tensor.name)

        @hookimpl
        def modelhub_checks():
            yield Check(name="no-empty-tensors", level="structure", formats=("raw",), run=no_empty_tensors)
    """
    return ()


@hookspec
def modelhub_on_event(event: Event) -> None:
    """Something happened to a checkpoint. Called in the process that made it happen, after the catalog has recorded it.

    Example::

        from modelhub import hookimpl

        @hookimpl
        def modelhub_on_event(event):
            if event.kind == "indexed":
                print("new:", event.path)
    """
