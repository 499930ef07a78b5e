"""A file of weights for TensorFlow or Flax that is named by itself, as a Hugging Face directory: where PyTorch's weights stand
beside it, the directory's own are those."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from modelhub import Conversion, ModelhubError, Table

from modelhub_huggingface.frameworks import FLAX, KERAS, counters, translated
from modelhub_huggingface.layout import CONFIG, is_document

_STEMS = ("tf_model", "flax_model")


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The table by PyTorch's names, with the documents beside the file. `ModelhubError` where there is no configuration beside
    it, or its name is none of transformers'."""
    table = sources[0]
    directory = os.path.dirname(table.files[0])
    if not os.path.isfile(os.path.join(directory, CONFIG)) or not os.path.basename(table.files[0]).startswith(_STEMS):
        raise ModelhubError(
            f"{table.files[0]} is not called as transformers calls its weights ({' or '.join(_STEMS)}), or there is no {CONFIG} "
            "beside it, which says how the model is built",
            "--to safetensors keeps all tensors under their names",
        )
    container = FLAX if table.files[0].endswith(".msgpack") else KERAS
    documents = [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if is_document(name)]
    files = (*table.files, *(path for path in documents if os.path.isfile(path) and path not in table.files))
    found = {tensor.name: tensor for tensor in (translated(container, one) for one in table.logical)}
    return replace(table, tensors=(*found.values(), *counters(found)), files=files)


def conversions() -> Iterator[Conversion]:
    for source in (KERAS, FLAX):
        yield Conversion(name=f"{source}-to-huggingface", source=source, target="huggingface", derive=derive)
