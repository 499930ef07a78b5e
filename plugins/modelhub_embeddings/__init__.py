"""Word embeddings for modelhub: fastText's models (``.bin``, ``.ftz``) and word2vec's vectors, binary or as text."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, Op, hookimpl

from modelhub_embeddings import fasttext, quantizer, rows, word2vec


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="fasttext",
        title="fastText",
        suffixes=(".ftz",),
        magics=(fasttext.MAGIC,),
        dtypes=("F32", "U8"),
        detect=fasttext.detect,
        read=fasttext.read,
    )
    yield Format(
        name="word2vec",
        title="word2vec vectors",
        suffixes=word2vec.SUFFIXES,
        dtypes=("F32",),
        detect=word2vec.detect,
        read=word2vec.read,
    )


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield quantizer.OP
    yield from rows.OPS
