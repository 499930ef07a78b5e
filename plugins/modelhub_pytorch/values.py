"""Tensors of a pickle as modelhub's: where their bytes lie in storages whose places are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from modelhub import Extent, Inline, InvalidFile, Node, Tensor, ops

from modelhub_pytorch.rebuild import itemsize
from modelhub_pytorch.stubs import Storage, TensorRef

Place = Callable[[Storage], "Extent | Node"]
"""Where a storage lies: its whole run of bytes, checked to be as long as the pickle says."""


class Values:
    """Builds values over storages. ``place`` is asked once for each storage; ``big``: the bytes are big-endian."""

    def __init__(self, file: str, place: Place, big: bool = False) -> None:
        self.file = file
        self.big = big
        self._place = place
        self._places: dict[int, Extent | Node] = {}

    def tensors(self, name: str, ref: TensorRef, view: str) -> Iterator[Tensor]:
        """The tensor(s) that ``ref`` is: one, or for a quantized one the stored integers and the logical floats."""
        if ref.unsupported or ref.storage is None:
            if ref.storage is not None and ref.storage.location != "meta":
                self._bounds(name, ref, ref.storage)
            yield Tensor(name, ref.dtype, ref.shape, None, view, ref.unsupported or "tensor without a storage")
            return
        if ref.quantizer is not None and view != "stored":
            yield from self._quantized(name, ref)
            return
        dtype, shape = ref.dtype, ref.shape
        value = self.value(name, ref)
        if dtype == "F4":  # torch counts pairs of elements
            if not shape:
                yield Tensor(name, "U8", shape, value, view)
                return
            shape = (*shape[:-1], shape[-1] * 2)
        yield Tensor(name, dtype, shape, value, view)

    def check(self, storage: Storage) -> Extent | Node | None:
        """Where a storage lies; None for one that has no data."""
        if storage.location == "meta":
            return None
        whole = self._places.get(id(storage))
        if whole is None:
            whole = self._places[id(storage)] = self._place(storage)
        return whole

    def _bounds(self, name: str, ref: TensorRef, storage: Storage) -> tuple[Extent | Node, int, int, int]:
        """(the storage's bytes, bytes of an element, elements, last element reached + 1), all checked."""
        whole = self.check(storage)
        if whole is None:
            raise InvalidFile(f"{self.file}: tensor {name!r:.200} rests on storage {storage.key!r:.80}, which has no data")
        size = itemsize(ref.dtype)
        elements = prod(ref.shape)
        available = storage.numel * storage.itemsize // size
        if elements >= 1 << 62:
            raise InvalidFile(f"{self.file}: tensor {name!r:.200} of {list(ref.shape)} has more elements than there can be")
        end = ref.offset + 1
        for count, stride in zip(ref.shape, ref.strides, strict=True):
            end += (count - 1) * stride
        if elements and end > available:
            raise InvalidFile(
                f"{self.file}: tensor {name!r:.200} reaches element {end - 1} of storage {storage.key!r:.80}, which has "
                f"{available}: "
                f"shape {list(ref.shape)}, strides {list(ref.strides)}, offset {ref.offset}"
            )
        return whole, size, elements, end

    def value(self, name: str, ref: TensorRef) -> Extent | Inline | Node:
        storage = ref.storage
        if storage is None:
            raise InvalidFile(f"{self.file}: tensor {name!r:.200} has no storage")
        whole, size, elements, end = self._bounds(name, ref, storage)
        if not elements:
            return Extent(whole.file, whole.offset, 0) if isinstance(whole, Extent) else Inline(b"")
        contiguous, expected = True, 1
        for count, stride in zip(reversed(ref.shape), reversed(ref.strides), strict=True):
            if count != 1:
                if stride != expected:
                    contiguous = False
                    break
                expected *= count
        dtype, offset = ref.dtype, ref.offset
        if dtype == "F4" and not contiguous:
            dtype = "U8"
        base = storage.view * storage.itemsize
        if isinstance(whole, Extent):
            # Only what the view reaches: a storage may hold a whole model, of which this is a small part.
            span = end - offset
            run = Extent(whole.file, whole.offset + base + offset * size, span * size)
            if not self.big or size == 1:
                return run if contiguous else ops.strided(run, dtype, ref.shape, ref.strides)
            if contiguous:
                return ops.byteswap(run, dtype, ref.shape)
            return ops.strided(ops.byteswap(run, dtype, (span,)), dtype, ref.shape, ref.strides)
        if (base + offset * size) % size:
            raise InvalidFile(f"{self.file}: tensor {name!r:.200} does not start at an element of storage {storage.key!r:.80}")
        if self.big and size > 1:
            whole = ops.byteswap(whole, dtype, (storage.whole * storage.itemsize // size,))
        if contiguous and not base and not offset and elements * size == storage.whole * storage.itemsize:
            shape = ref.shape if dtype != "F4" else (*ref.shape[:-1], ref.shape[-1] * 2)
            return ops.reshape(whole, dtype, shape)
        return ops.strided(whole, "U8" if dtype == "F4" else dtype, ref.shape, ref.strides, base // size + offset)

    def _quantized(self, name: str, ref: TensorRef) -> Iterator[Tensor]:
        """The integers as stored, and what they mean."""
        value = self.value(name, ref)
        yield Tensor(name, ref.dtype, ref.shape, value, "stored")
        quantizer = ref.quantizer or ()
        parts, scale, zero, axis = [ops.reshape(value, ref.dtype, ref.shape)], 1.0, 0, None
        if len(quantizer) == 2:
            scale, zero = quantizer
        else:
            axis = quantizer[2]
            for suffix, part in zip(("scales", "zero_points"), quantizer[:2], strict=True):
                inner = self.value(f"{name}.{suffix}", part)
                yield Tensor(f"{name}.{suffix}", part.dtype, part.shape, inner, "stored")
                parts.append(ops.reshape(inner, part.dtype, part.shape))
        args = {"dtype": ref.dtype, "shape": list(ref.shape), "scale": scale, "zero_point": zero, "axis": axis}
        try:
            whole = ops.dequant("affine", *parts, **args)
        except ValueError as error:
            raise InvalidFile(f"{self.file}: quantized tensor {name!r:.200}: {error}") from error
        yield Tensor(name, "F32", ref.shape, whole, "logical")
