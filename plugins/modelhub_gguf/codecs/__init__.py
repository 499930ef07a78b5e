"""The codecs of ggml's block types, as records; the arithmetic is imported when it is first used.

Decoders give the floats of ggml's own ``to_float``, encoders the bytes of its ``ggml_quantize_chunk``, bit for bit.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from modelhub import Codec

from modelhub_gguf.types import BY_NAME

_SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
_SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
_PLAIN = ("NVFP4", "Q1_0", "Q2_0")
"""Encoded, but not by compiled kernels: too rare."""


def _decode(dtype: str, data: Any, elements: int) -> Any:
    from modelhub_gguf.codecs.decode import decode

    return decode(dtype, data, elements)


def _prepare(module: str, dtype: str, use: str) -> None:
    if use != "decode":
        import_module("modelhub_gguf.codecs.jit").tell_if_slow()
        _call(module, "prepare", dtype, use)
    else:
        from modelhub_gguf.codecs.decode import prepare

        prepare(dtype)


def _call(module: str, function: str, dtype: str, *args: Any) -> Any:
    return getattr(import_module(f"modelhub_gguf.codecs.{module}"), function)(dtype, *args)


def _codec(dtype: str) -> Codec:
    decode = partial(_decode, dtype)
    if dtype in _PLAIN:
        return Codec(dtype=dtype, decode=decode, encode=partial(_call, "simple", "encode", dtype))
    if dtype in _SIMPLE or dtype in _SEARCHED:
        module = "simple" if dtype in _SIMPLE else "k_quants"
        encode, transcode = (partial(_call, module, name, dtype) for name in ("encode", "transcode"))
        return Codec(dtype=dtype, decode=decode, encode=encode, transcode=transcode, prepare=partial(_prepare, module, dtype))
    return Codec(dtype=dtype, decode=decode)


CODECS = tuple(_codec(kind.name) for kind in BY_NAME.values() if kind.block > 1)
"""One for every block type that a GGUF file may hold."""
