"""Diffusion models for modelhub: diffusers' pipelines, a directory with `model_index.json` and a folder for each component, as
one checkpoint; and models in one file.

The weights are read by the plugins of their formats; this one knows the layout and what the documents say.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_diffusers import single_file
from modelhub_diffusers.layout import INDEX, detect_directory
from modelhub_diffusers.reader import read
from modelhub_diffusers.writer import create

DTYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
"""What safetensors stores and diffusers loads."""


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="diffusers",
        title="diffusers pipeline",
        detect_directory=detect_directory,
        marks=(INDEX,),
        dtypes=DTYPES,
        read=read,
        create=create,
    )
    yield Format(
        name="diffusion",
        title="diffusion model in one file",
        suffixes=single_file.SUFFIXES,
        detect=single_file.detect,
        read=single_file.read,
    )
