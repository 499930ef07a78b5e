"""Caffe for modelhub: the weights of trained networks (``.caffemodel``), read without Caffe."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_caffe.reader import SUFFIX, detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="caffe",
        title="Caffe",
        suffixes=(SUFFIX,),
        dtypes=("F32", "F64"),
        extension=SUFFIX,
        detect=detect,
        read=read,
    )
