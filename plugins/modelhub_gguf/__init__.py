"""GGUF for modelhub: the files of llama.cpp, their block encodings, and the way there and back from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterable

from modelhub import Codec, hookimpl


@hookimpl
def modelhub_codecs() -> Iterable[Codec]:
    from modelhub_gguf.codecs import CODECS

    return CODECS
