"""Tokenizers, from the documents of a Hugging Face directory to the keys of a GGUF header, and back.

`fields` gives the ``tokenizer.*`` keys; `documents` gives ``tokenizer.json`` and ``tokenizer_config.json``. Neither tokenizes
anything: both say the same tokenizer in another notation, and where the other side cannot say it, the error names what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelhub_gguf.documents import Documents
    from modelhub_gguf.fields import Field


def fields(
    documents: Documents, config: Mapping[str, Any], *, architecture: str, vocab_size: int, pre: str = ""
) -> dict[str, Field]:
    """The ``tokenizer.*`` keys of a model, in the order in which they are written.

    ``config``: ``config.json`` (of a multimodal model: as it stands, its ``text_config`` inside). ``architecture``: GGUF's name
    for it ("llama", "qwen2", "bert"). ``vocab_size``: rows of the token embedding; as many tokens are listed, unused ones as
    ``[PADn]``; 0 where the tokenizer alone says. ``pre``: what the user names as the pre-tokenizer (``tokenizer.ggml.pre``);
    empty: it follows from the tokenizer's definition.

    `InvalidFile` where a document contradicts itself, `UnsupportedFile` where there is no tokenizer, or one that llama.cpp has no
    notation for."""
    from modelhub_gguf.tokenizers.to_gguf import fields as run

    return run(documents, config, architecture=architecture, vocab_size=vocab_size, pre=pre)


def documents(metadata: Mapping[str, Field]) -> dict[str, bytes]:
    """The tokenizer's documents of a Hugging Face directory (name -> bytes: ``tokenizer.json``, ``tokenizer_config.json``) from
    a GGUF header's keys; empty where the header has no tokenizer ("none").

    ``metadata``: the header's keys, as `header.native` gives them: a large value may be an `Extent` over little-endian bytes, and
    is read where it is needed. `UnsupportedFile` names a tokenizer model or a pre-tokenizer that there is no ``tokenizer.json``
    for, `InvalidFile` says which key is missing or of the wrong type."""
    from modelhub_gguf.tokenizers.to_huggingface import documents as run

    return run(metadata)
