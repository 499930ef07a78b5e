"""Tokenizers that stand alone, for modelhub: `tokenizer.json`, SentencePiece models, tiktoken's ranks, Mistral's tekken, and the
vocabularies of GPT-2 and BERT. They are told, shown and checked; they have no tensors.

A tokenizer beside a model is the model's, and no checkpoint of its own: `modelhub_tokenizers.layout` says what beside means.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, hookimpl

from modelhub_tokenizers import layout, reader, sentencepiece


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="tokenizer",
        title="tokenizer",
        suffixes=layout.SUFFIXES,
        magics=sentencepiece.MAGICS,
        detect=layout.detect,
        detect_directory=layout.detect_directory,
        read=reader.read,
        tensors=False,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name="tokenizer", level="structure", formats=("tokenizer",), run=reader.check)
