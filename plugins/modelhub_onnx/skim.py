"""The short way through a graph whose nodes and initializers are written as nearly all are: one look at each field, no
generators, no records.

What is not laid out like that (long attributes, typed or external data, a field that is new) is left where it is, and
`modelhub_onnx.graph` goes the long way. Both ways must come to the same; the tests hold them against each other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod

from modelhub import dtypes

from modelhub_onnx import elements
from modelhub_onnx.model import Model

MAX_NAME = 1 << 16
MAX_DIMS = 64
MOST = 1024
"""Fields taken in one go."""
MAX_SMALL = 240
"""Attributes up to this many bytes are remembered: most nodes have the same few."""
MAX_END = 512
"""And what nodes end with."""
MAX_REMEMBERED = 4096
SMALL_CONSTANT = 256
"""Bytes below which a constant that is no run of floats is the graph's arithmetic (a shape, an axis), and no weight."""
_SIZES = {
    number: (element.dtype, dtypes.get(element.dtype).block_bytes, dtypes.get(element.dtype).kind == "float")
    for number, element in elements.ELEMENTS.items()
    if dtypes.get(element.dtype).block == 1
}
"""data_type -> (dtype, bytes of an element, whether it is a float)."""
_PASSED = (0x6A, 0x72)
"""Keys of a graph's fields that nothing is kept of: value_info, quantization_annotation."""
_PASSED_INSIDE = (*_PASSED, 0x12, 0x52, 0x5A, 0x62)
"""And of a graph inside of another: name, doc_string, input, output."""


@dataclass(slots=True)
class Skim:
    """``tracked``: operators that are left to the long way. ``plain``: attributes that are known to hold nothing to list -> small
    constants in them. ``ends``: nodes from their operator on, behind what has names -> (operator, domain, small constants): those
    of a layer are written anew with other names in each layer. What a model has of both may be given to the next.
    ``operators``: (name, domain) -> nodes."""

    model: Model
    tracked: Collection[bytes]
    plain: dict[bytes, int] = field(default_factory=dict)
    ends: dict[bytes, tuple[bytes, bytes, int]] = field(default_factory=dict)
    operators: dict[tuple[bytes, bytes], int] = field(default_factory=dict)

    def nodes(self, buffer: bytes, base: int, start: int, stop: int) -> tuple[int, int]:
        """Take ``NodeProto`` fields of the graph from ``start`` on: (where the first field begins that is not taken, how many
        were). Offsets count as those of ``base``, where ``buffer`` begins."""
        return self._take(buffer, base, start, stop, False)

    def items(self, buffer: bytes, base: int, start: int, stop: int) -> tuple[int, int]:
        """The same, and initializers too, which become columns of the model."""
        return self._take(buffer, base, start, stop, True)

    def _take(self, buffer: bytes, base: int, start: int, stop: int, initializers: bool) -> tuple[int, int]:
        at, limit, last = start - base, min(stop - base, len(buffer)), stop - base
        plain, operators, tracked, model, ends = self.plain, self.operators, self.tracked, self.model, self.ends
        passed = _PASSED if initializers else _PASSED_INSIDE
        constants = taken = 0
        try:
            while at < limit and taken < MOST:
                key = buffer[at]
                here = at + 2
                length = buffer[at + 1]
                if length > 127:
                    high = buffer[here]
                    here += 1
                    if high > 127:  # three bytes and more are tensors
                        if key == 0x0A:
                            break
                        high, here = _long(buffer, here, high)
                        if not here:
                            break
                    length = length & 127 | high << 7
                end = here + length

                if key == 0x0A:
                    if end > limit:
                        break
                    operator = domain = b""
                    inside = tail = 0
                    while here < end:
                        key = buffer[here]
                        if key == 0x22 and not tail:
                            text = buffer[here:end]
                            if text in ends:
                                operator, domain, inside = ends[text]
                                tail, here = -1, end
                                continue
                            tail = here
                        length = buffer[here + 1]
                        if length > 127:
                            high = buffer[here + 2]
                            if high > 127:
                                break
                            first = here + 3
                            here = first + (length & 127 | high << 7)
                        else:
                            first = here + 2
                            here = first + length
                        if key == 0x0A or key == 0x12 or key == 0x1A:  # input, output, name
                            continue
                        if key == 0x22:
                            operator = buffer[first:here]
                        elif key == 0x2A:
                            tail = tail or -1
                            text = buffer[first:here]
                            known = plain.get(text)
                            if known is None:
                                known = self._attribute(text)
                                if known < 0:
                                    break
                            inside += known
                        elif key == 0x3A:
                            tail = tail or -1
                            domain = buffer[first:here]
                        elif key not in (0x32, 0x42, 0x4A):  # doc_string, overload, metadata_props
                            break
                    else:
                        if here == end and operator and operator not in tracked:
                            called = operator, domain
                            operators[called] = operators.get(called, 0) + 1
                            if 0 < tail >= end - MAX_END and len(ends) < MAX_REMEMBERED:
                                ends[buffer[tail:end]] = operator, domain, inside
                            constants += inside
                            taken += 1
                            at = end
                            continue
                    break

                if key in passed and end <= last:
                    at = end
                    taken += 1
                    continue
                if key != 0x2A or not initializers or end > last:
                    break
                dims: list[int] = []
                data_type, name = 0, b""
                while here < end:
                    key = buffer[here]
                    value = buffer[here + 1]
                    here += 2
                    if value > 127:
                        high = buffer[here]
                        here += 1
                        if high > 127:
                            high, here = _long(buffer, here, high)
                            if not here:
                                break
                        value = value & 127 | high << 7
                    if key == 0x08:
                        dims.append(value)
                    elif key == 0x10 and not data_type:
                        data_type = value
                    elif key == 0x42 and not name:
                        name = buffer[here : here + value]
                        here += value
                    elif key == 0x4A and here + value == end:  # raw_data comes last, and need not lie in the buffer
                        break
                    else:
                        here = 0
                        break
                size = _SIZES.get(data_type)
                if not here or key != 0x4A or size is None or not value or len(dims) > MAX_DIMS or prod(dims) * size[1] != value:
                    break
                if not name or not name.isascii() or len(name) > MAX_NAME:
                    break
                model.names.append(name.decode())
                model.dtypes.append(size[0])
                model.shapes.append(dims)
                model.offsets.append(base + here)
                model.nbytes.append(value)
                taken += 1
                at = end
        except IndexError:  # it ends outside of what is read
            pass
        model.constants += constants
        return base + at, taken

    def _attribute(self, text: bytes) -> int:
        """Small constants in an attribute that has not been met before: 0 where it is numbers or a text, 1 where it is a tensor
        that is no weight; -1 where the long way is to look. It is remembered."""
        at, end, constants = 0, len(text), 0
        if end > MAX_SMALL:
            return -1
        try:
            while at < end:
                key, value = text[at], text[at + 1]
                at += 2
                if key == 0x15:  # f
                    at += 3
                    continue
                if key == 0xA0:  # type, whose key has a second byte
                    if value != 1 or text[at] > 127:
                        return -1
                    at += 1
                    continue
                if value > 127:
                    high = text[at]
                    at += 1
                    if high > 127:
                        high, at = _long(text, at, high)
                        if not at:
                            return -1
                    value = value & 127 | high << 7
                if key in (0x0A, 0x22, 0x3A, 0x42, 0x4A):  # name, s, floats, ints, strings
                    at += value
                elif key == 0x2A and not constants and self._small(text, at, at + value):
                    constants = 1
                    at += value
                elif key not in (0x18, 0x40):  # i; ints one by one
                    return -1
        except IndexError:
            return -1
        if at != end:
            return -1
        if len(self.plain) < MAX_REMEMBERED:
            self.plain[text] = constants
        return constants

    @staticmethod
    def _small(text: bytes, at: int, end: int) -> bool:
        """Whether the ``TensorProto`` there is raw data and no weight (see `modelhub_onnx.graph`); in an attribute of at most
        `MAX_SMALL` bytes, only a run of floats is one."""
        count, data_type = 1, 0
        while at < end:
            key, value = text[at], text[at + 1]
            at += 2
            if value > 127:
                high = text[at]
                at += 1
                if high > 127:
                    return False
                value = value & 127 | high << 7
            if key == 0x08:
                count *= value
            elif key == 0x10 and not data_type:
                data_type = value
            elif key == 0x42:
                at += value
            elif key == 0x4A and at + value == end:
                _, size, is_float = _SIZES.get(data_type, ("", 0, True))
                return count * size == value > 0 and (count == 1 or not is_float)
            else:
                return False
        return False


def _long(buffer: bytes, at: int, value: int) -> tuple[int, int]:
    """The rest of a varint from its third byte at ``at`` on, ``value`` being its second: (all but the first seven bits, where it
    ends); the end is 0 for what is no number of 63 bits."""
    value &= 127
    shift = 7
    while shift <= 49:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, 0
