"""AutoRound, which writes the layouts of others: GPTQ's with zero points as they are, GPTQ's own, AWQ's, or compressed-tensors'.

``packing_format`` (before: ``backend``) says which: ``auto_round`` and ``auto_round:gptqmodel`` store zero points as they are,
``auto_round:auto_gptq`` less one, ``auto_round:auto_awq`` is AWQ's "gemm"; what starts with ``auto_round:llm_compressor``,
``fp8``, ``nv_fp`` or ``mx_fp`` has words or floats beside their scales. 5, 6 and 7 bits are one run of bits, as 3 are.
(auto-round ``inference/backend.py``, ``export/export_to_autoround/export.py``, ``utils/bit_packing.py``.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelhub_huggingface.packed import awq, gptq, scaled
from modelhub_huggingface.packed.scheme import Kept, Scheme, Stored, Whole


def unpack(source: Stored) -> Iterator[Whole | Kept]:
    """The wholes of the layout that the settings name."""
    layout = _layout(source.settings)
    if layout == "awq":
        yield from awq.unpack(source._replace(settings={**source.settings, "version": "gemm"}))
        return
    yield from gptq.unpack(source._replace(settings={**source.settings, "checkpoint_format": layout}))
    yield from scaled.unpack(source)


def _layout(settings: Mapping[str, Any]) -> str:
    """What `gptq` calls the layout; "awq" for the other's."""
    said = str(settings.get("packing_format") or settings.get("backend") or "").lower()
    if "awq" in said:
        return "awq"
    return gptq.RUNS_V1 if "gptq" in said and "gptqmodel" not in said else gptq.RUNS


SCHEME = Scheme(methods=("auto-round", "intel/auto-round"), unpack=unpack, beside=scaled.ACTIVATIONS)
