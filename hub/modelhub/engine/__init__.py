"""The tensor engine: it alone reads weights, computes, encodes, measures errors and writes; in bounded memory, in parallel."""

from __future__ import annotations

from modelhub.engine.values import CHUNK, Handles, read_tensor, tensor_chunks
from modelhub.engine.write import Written, write_checkpoint

__all__ = ["CHUNK", "Handles", "Written", "read_tensor", "tensor_chunks", "write_checkpoint"]
