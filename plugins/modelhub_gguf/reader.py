"""The table of a GGUF checkpoint, one file or several, of either byte order; and a header for those who want more of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from modelhub import Checkpoint, Columns, Extent, File, Finding, Metadata, Tensor, dtypes, ops

from modelhub_gguf import keys, splits
from modelhub_gguf.fields import Field
from modelhub_gguf.header import MAGIC, Header, native, parse
from modelhub_gguf.swap import HALVES, swapped
from modelhub_gguf.texts import stored_texts


def read(checkpoint: Checkpoint) -> Iterable[Tensor | Columns | Metadata | Finding]:
    """Tensors in the order of the header, part after part; and what the keys say."""
    if len(checkpoint.files) == 1 and not checkpoint.missing:
        headers = [parse(checkpoint.primary)]
        splits.check_alone(headers[0], checkpoint.primary.name)
    else:
        headers = splits.read_parts([checkpoint.open(path) for path in checkpoint.files], checkpoint.missing)
    fields, lengths = splits.merged(headers)
    values = keys.describe(fields, lengths)
    if headers[0].byteorder == "big":
        values["byteorder"] = "big"
    columns = [header.columns for header in headers]
    label = keys.precision(
        fields,
        [name for part in columns for name in part.names],
        [kind for part in columns for kind in part.dtypes],
        [shape for part in columns for shape in part.shapes],
    )
    yield Metadata(values=values, stored=stored_texts(fields), precision=label)
    for header in headers:
        yield from tensors_of(header)


def tensors_of(header: Header) -> Iterator[Tensor | Columns]:
    """A header's tensors: as they stand in the file, or with their bytes in our order."""
    if header.byteorder == "little":
        yield header.columns
        return
    for tensor in header.columns.tensors():
        yield _in_our_order(tensor)


def _in_our_order(tensor: Tensor) -> Tensor:
    assert isinstance(tensor.value, Extent)
    dtype = dtypes.get(tensor.dtype)
    if dtype.block_bytes == 1:
        return tensor
    if dtype.block == 1:
        return tensor._replace(value=ops.byteswap(tensor.value, tensor.dtype, tensor.shape))
    if tensor.dtype in HALVES and len(tensor.shape) > 1:
        return tensor._replace(value=swapped(tensor.value, tensor.dtype, tensor.shape))
    return tensor._replace(value=None, unsupported=f"big-endian {tensor.dtype} tensor, whose byte order nothing defines")


def read_headers(paths: Sequence[str]) -> tuple[dict[str, Field], dict[str, int], list[Header]]:
    """The keys of a checkpoint given its files, as a writer takes them (`modelhub_gguf.header.native`), without those about
    splitting; the lengths of its arrays; and the headers themselves. Files that are no GGUF (the manifest of a store) are passed
    over."""
    headers = []
    for path in paths:
        with File(path) as file:
            if file.head.startswith(MAGIC) or len(paths) == 1:
                headers.append(parse(file))
    fields, lengths = splits.merged([header._replace(fields=native(header)) for header in headers])
    return fields, lengths, headers
