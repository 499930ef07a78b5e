"""PaddlePaddle's files for modelhub: checkpoints (``.pdparams``, ``.pdopt``), which are pickles and are not unpickled, and
inference models (``.pdmodel`` or ``.json``, with ``.pdiparams``)."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Check, Format, Op, hookimpl

from modelhub_paddle import checks, latin
from modelhub_paddle.detect import PARAMS, PICKLES, PROGRAM, detect
from modelhub_paddle.directories import detect_directory
from modelhub_paddle.elements import DTYPES
from modelhub_paddle.reader import read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="paddle",
        title="PaddlePaddle",
        suffixes=(PROGRAM, PARAMS, *PICKLES, ".json"),
        dtypes=DTYPES,
        sharing="any",
        detect=detect,
        detect_directory=detect_directory,
        read=read,
    )


@hookimpl
def modelhub_checks() -> Iterator[Check]:
    yield Check(name=checks.GLOBALS, level="safety", formats=("paddle",), run=checks.pickle_globals)


@hookimpl
def modelhub_ops() -> Iterator[Op]:
    yield latin.OP
