"""Adapters for modelhub: PEFT's directories, and LoRA files of diffusion models (kohya, diffusers), are told, shown and merged
into their base.

The weights are read by the plugins of the containers; torch and peft are not needed for anything."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Combination, Format, Op, hookimpl

from modelhub_peft import layout, lora_file, rotations, scaling


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="peft",
        title="PEFT adapter",
        suffixes=tuple(layout.WEIGHTS),
        detect=layout.detect,
        detect_directory=layout.detect_directory,
        read=layout.read,
    )
    yield Format(
        name="lora",
        title="LoRA file (kohya, diffusers)",
        suffixes=lora_file.SUFFIXES,
        detect=lora_file.detect,
        read=lora_file.read,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield from scaling.OPS
    yield from rotations.OPS


@hookimpl
def modelhub_conversions() -> Iterator[Combination]:
    from modelhub_peft import lora_merge, merge

    yield merge.COMBINATION
    yield lora_merge.COMBINATION
