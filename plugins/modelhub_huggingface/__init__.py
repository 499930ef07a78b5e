"""Hugging Face directories for modelhub: configuration, tokenizer and weights as one checkpoint, in safetensors or PyTorch files.

The weights are read and written by the plugins of those formats; this one knows the layout and what the documents say.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Conversion, Format, Op, Recipe, hookimpl

from modelhub_huggingface import packed
from modelhub_huggingface.frameworks.convert import conversions
from modelhub_huggingface.layout import detect_directory
from modelhub_huggingface.packed.recipes import recipes
from modelhub_huggingface.reader import read
from modelhub_huggingface.writer import create

_DTYPES = (
    "BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "BF16", "F32", "F64", "C64",
    "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4",
)  # fmt: skip
"""What safetensors stores and torch loads."""


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="huggingface",
        title="Hugging Face directory",
        dtypes=_DTYPES,
        sharing="none",
        detect_directory=detect_directory,
        read=read,
        create=create,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from packed.all_ops()


@hookimpl
def modelhub_recipes() -> Iterator[Recipe]:
    yield from recipes()


@hookimpl
def modelhub_conversions() -> Iterator[Conversion]:
    yield from conversions()
