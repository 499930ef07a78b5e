"""GGUF for modelhub: the files of llama.cpp, their block encodings, and the way there and back from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from modelhub import Check, Codec, Conversion, Format, Metadata, Op, Recipe, hookimpl

from modelhub_gguf.detect import SUFFIX, detect
from modelhub_gguf.header import MAGIC
from modelhub_gguf.legacy import DTYPES as LEGACY_DTYPES
from modelhub_gguf.legacy import MAGICS as LEGACY_MAGICS
from modelhub_gguf.legacy import detect as detect_legacy
from modelhub_gguf.legacy import read as read_legacy
from modelhub_gguf.reader import read
from modelhub_gguf.swap import OP
from modelhub_gguf.types import BY_NAME
from modelhub_gguf.writer import create


@hookimpl
def modelhub_formats() -> Iterable[Format]:
    yield Format(
        name="gguf",
        title="GGUF",
        suffixes=(SUFFIX,),
        magics=(MAGIC,),
        dtypes=tuple(BY_NAME),
        extension=SUFFIX,
        sharing="none",
        detect=detect,
        read=read,
        create=create,
        edit=_edit,
    )
    yield Format(
        name="ggml",
        title="GGML (before GGUF)",
        magics=LEGACY_MAGICS,
        dtypes=LEGACY_DTYPES,
        detect=detect_legacy,
        read=read_legacy,
    )


def _edit(metadata: Metadata, changes: Mapping[str, str | None]) -> Metadata:
    from modelhub_gguf.edit import edit

    return edit(metadata, changes)


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    from modelhub_gguf import checks, runnable

    yield Check(name=checks.NAME, level="structure", formats=("gguf",), run=checks.run)
    yield Check(
        name=runnable.NAME,
        level="runnable",
        formats=("gguf",),
        run=runnable.run,
        requires=(runnable.LIBRARY,),
        extra="llamacpp",
    )


@hookimpl
def modelhub_conversions() -> Iterator[Conversion]:
    from modelhub_gguf import from_huggingface, legacy_convert, lora, requantize, to_huggingface

    yield requantize.CONVERSION
    yield legacy_convert.CONVERSION
    yield from_huggingface.CONVERSION
    yield to_huggingface.CONVERSION
    yield lora.CONVERSION


@hookimpl
def modelhub_ops() -> Iterable[Op]:
    from modelhub_gguf.recipes.imatrix import IMPORTANCE

    yield OP
    yield IMPORTANCE


@hookimpl
def modelhub_recipes() -> Iterable[Recipe]:
    from modelhub_gguf.recipes import RECIPES

    return RECIPES


@hookimpl
def modelhub_codecs() -> Iterable[Codec]:
    from modelhub_gguf.codecs import CODECS

    return CODECS
