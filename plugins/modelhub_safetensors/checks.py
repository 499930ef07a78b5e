"""The library's own verdict on a file: what everyone else's programs will say when they open it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Table

NAME = "safetensors-library"


def run(checkpoint: Checkpoint, table: Table) -> Iterator[Finding]:
    """Open each file with ``safetensors.safe_open``, which validates the header and reads no tensor."""
    from safetensors import SafetensorError, safe_open

    for path in checkpoint.files:
        if not path.endswith(".safetensors"):
            continue
        name = checkpoint.open(path).name
        try:
            with safe_open(path, framework="numpy") as opened:
                names = set(opened.keys())
        except (SafetensorError, OSError, ValueError) as error:
            yield Finding(NAME, "error", f"the safetensors library refuses it: {error}", file=name)
            continue
        # A layout with a directory for each component names tensors by it; the file itself does not.
        component = os.path.relpath(os.path.dirname(path), checkpoint.directory) + "/"
        ours = {tensor.name.removeprefix(component) for tensor in table.stored if getattr(tensor.value, "file", None) == path}
        if ours != names:
            differ = sorted(ours ^ names)[0]
            yield Finding(
                NAME, "error", f"the safetensors library lists other tensors: {differ!r} is in one list only", file=name
            )
