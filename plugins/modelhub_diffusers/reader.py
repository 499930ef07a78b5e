"""Reads a pipeline: the tensors of each component under `COMPONENT/NAME`, and what the documents say."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Checkpoint, Finding, Metadata, Tensor, UnsupportedFile, read_as, read_json

from modelhub_diffusers.families import attended
from modelhub_diffusers.layout import CONFIG, INDEX, MAX_JSON, SUFFIXES, components, folders_of, json_of

MAIN = ("transformer", "unet", "prior", "decoder", "vqvae")
"""The component that does the work, and gives a pipeline its precision."""
SHOWN = ("sample_size", "in_channels", "cross_attention_dim", "num_attention_heads", "latent_channels")


def read(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """Tensors by component, findings of their formats, and one `Metadata` for the whole."""
    if INDEX not in checkpoint:
        yield from _part(checkpoint)
        return
    index = read_json(checkpoint.open(INDEX), limit=MAX_JSON)
    values: dict[str, object] = {"architecture": str(index["_class_name"])[:200], "library": "diffusers"}
    if isinstance(index.get("_diffusers_version"), str):
        values["library_version"] = index["_diffusers_version"][:40]
    parts: dict[str, str] = {}
    precisions: dict[str, str] = {}
    held: set[str] = set()
    for component in components(index, folders_of(checkpoint.files, checkpoint.directory)):
        folder = f"{checkpoint.directory}/{component.name}/"
        inside = [path for path in checkpoint.files if path.startswith(folder)]
        parts[component.name] = component.kind[:200]
        for suffix, format in SUFFIXES.items():
            files = [path for path in inside if path.endswith(suffix)]
            files += [path for path in inside if path.endswith(".json") and f"{suffix}.index." in path]
            if not files or files[0].endswith(".json"):
                continue
            held.add(format)
            dtypes: set[str] = set()
            for record in read_as(format, checkpoint, files):
                if isinstance(record, Tensor):
                    dtypes.add(record.dtype)
                    yield record._replace(name=f"{component.name}/{record.name}")
                elif isinstance(record, Metadata):
                    precisions[component.name] = record.precision
                else:
                    yield record
            if len(dtypes) == 1 and not precisions.get(component.name):
                precisions[component.name] = dtypes.pop()
            break
        if component.name in MAIN and f"{folder}config.json" in checkpoint:
            config = json_of(checkpoint.open(f"{folder}config.json"))
            values |= {key: config[key] for key in SHOWN if type(config.get(key)) is int}
    values["components"] = parts
    container = held.pop() if len(held) == 1 else "mixed" if held else ""
    yield Metadata(
        values=values, container=container, precision=next((precisions[name] for name in MAIN if name in precisions), "")
    )


def _part(checkpoint: Checkpoint) -> Iterator[Tensor | Metadata | Finding]:
    """A component that stands alone: its tensors by their own names."""
    config = json_of(checkpoint.open(CONFIG))
    shapes: dict[str, tuple[int, ...]] = {}
    for suffix, format in SUFFIXES.items():
        files = [path for path in checkpoint.files if path.endswith(suffix)]
        files += [path for path in checkpoint.files if path.endswith(".json") and f"{suffix}.index." in path]
        if not files or files[0].endswith(".json"):
            continue
        inner = Metadata()
        for record in read_as(format, checkpoint, files):
            if isinstance(record, Metadata):
                inner = record
                continue
            if isinstance(record, Tensor):
                shapes[record.name] = record.shape
            yield record
        values: dict[str, object] = {**inner.values, "architecture": str(config.get("_class_name"))[:200], "library": "diffusers"}
        values |= {key: config[key] for key in SHOWN if type(config.get(key)) is int}
        if attended(shapes):
            values["family"] = attended(shapes)
        yield Metadata(values=values, stored=inner.stored, container=format, precision=inner.precision)
        return
    raise UnsupportedFile("none of its weights is there")
