"""Whether llama.cpp runs a GGUF model: it is loaded, and gives one token (or, where it makes none, one embedding).

Through xllamacpp, which carries llama.cpp itself. It runs in the process that calls it, which is a worker: what the C++ code does
there, up to ending the process, is a finding and no more.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

from modelhub import Checkpoint, Finding, Table

NAME = "gguf-runs"
LIBRARY = "xllamacpp"
PROMPT = "The capital of France is"
CONTEXT = 64
"""Tokens: enough for the prompt, and a small cache."""
_ENCODERS = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "modern-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "t5encoder",
)
"""Architectures that make embeddings and no text (``llm_arch`` in ``src/llama-arch.cpp``)."""
_ERROR = re.compile(rb"^[0-9.]+ E +(?:[a-z]+ +)?(.*)$", re.MULTILINE)


def run(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """One finding: what it said, or why it did not run."""
    kind = table.metadata.values.get("type", "model")
    if kind != "model":
        yield Finding(NAME, "info", f"not run: it is no model by itself but of the type {kind}")
        return
    path = next(file.path for file in checkpoint if file.head.startswith(b"GGUF"))
    architecture = table.metadata.values.get("architecture", "")
    with tempfile.TemporaryFile() as log:
        try:
            with _heard(log):
                said = _embedded(path) if architecture in _ENCODERS else _completed(path)
        except (RuntimeError, ValueError, MemoryError) as error:
            yield Finding(NAME, "error", f"llama.cpp does not run it: {_reason(log) or error}")
            return
    yield Finding(NAME, "info", f"runs in llama.cpp: {said}")


def _completed(path: str) -> str:
    answer = (
        import_module(LIBRARY).Server(_parameters(path)).handle_completions({"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    )
    text = answer["choices"][0]["text"]
    return f"{PROMPT!r} goes on with {text!r}"


def _embedded(path: str) -> str:
    parameters = _parameters(path)
    parameters.embedding = True
    answer = import_module(LIBRARY).Server(parameters).handle_embeddings({"input": PROMPT})
    vector = answer["data"][0]["embedding"]
    return f"an embedding of {len(vector)} numbers"


def _parameters(path: str) -> Any:
    parameters = import_module(LIBRARY).CommonParams()
    parameters.model.path = path
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = 1
    parameters.warmup = False
    return parameters


@contextmanager
def _heard(log: IO[bytes]) -> Iterator[None]:
    """What C++ code writes to stderr goes to ``log``."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reason(log: IO[bytes]) -> str:
    """The first complaint in a log of llama.cpp's."""
    log.seek(0)
    match = _ERROR.search(log.read(1 << 20))
    return match[1].decode("utf-8", "replace").strip()[:500] if match else ""
