"""Flax checkpoints for modelhub: nested dictionaries of arrays in msgpack, as ``flax.serialization.to_bytes`` writes them.

Neither flax nor jax nor msgpack is needed: the scanner finds where each array's bytes lie, and reads none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_flax.reader import DTYPES, MAGICS, detect, read


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    stored = tuple(DTYPES.values())
    yield Format(
        name="flax", title="Flax msgpack", suffixes=(".msgpack",), magics=MAGICS, dtypes=stored, detect=detect, read=read
    )
