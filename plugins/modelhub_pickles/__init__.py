"""Pickles of libraries that keep whole objects (scikit-learn, joblib, gensim, XGBoost's and LightGBM's wrappers), for modelhub:
what they are and what loading one would import, by their opcodes. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, hookimpl

from modelhub_pickles.reader import SUFFIXES, detect, read, unsafe_imports

CHECK = "pickle-imports"


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(name="pickle", title="Pickled objects", suffixes=SUFFIXES, detect=detect, read=read, tensors=False)


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=CHECK, level="safety", formats=("pickle",), run=unsafe_imports)
