"""What calls in a pickle would have made: tensors, storages, plain containers. The functions themselves are never called.

Each method of `World` stands for one function of ``torch/_utils.py`` (torch 2.13) and takes its arguments as the pickle gives
them: every one is checked before it is used. Values are turned into extents later, by `modelhub_pytorch.values`.
"""

from __future__ import annotations

from typing import Any

from modelhub import InvalidFile

from modelhub_pytorch.allow import DTYPES, STORAGES, Report, is_allowed
from modelhub_pytorch.stubs import Builder, Call, Global, Storage, TensorRef

MAX_DIMENSIONS = 64
_ITEMSIZE = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
    "C128": 16,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "C32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "": 1,
}
_UNTYPED = {"UntypedStorage", "_UntypedStorage"}
_PACKED = {"QUInt4x2Storage": "packed quint4x2", "QUInt2x4Storage": "packed quint2x4"}


def itemsize(dtype: str) -> int:
    """Bytes of one element; F4 counts the pairs that torch counts."""
    return _ITEMSIZE.get(dtype, 1)


class World:
    """The globals and storages of one checkpoint's pickles. ``area`` prefixes the storages' keys ("data", "constants")."""

    def __init__(self, file: str, report: Report, *, torchscript: bool = False) -> None:
        self.file = file
        self.report = report
        self.torchscript = torchscript
        self.area = "data"
        self.storages: dict[tuple[Any, ...], Storage] = {}
        self._globals: dict[tuple[str, str], Global] = {}
        self._builders: dict[tuple[str, str], Builder] = {
            ("collections", "OrderedDict"): self.mapping,
            ("collections", "defaultdict"): self.default_mapping,
            ("collections", "Counter"): self.mapping,
            ("builtins", "set"): self.sequence,
            ("builtins", "frozenset"): self.sequence,
            ("builtins", "list"): self.sequence,
            ("__builtin__", "set"): self.sequence,
            ("__builtin__", "list"): self.sequence,
            ("__builtin__", "dict"): self.mapping,
            ("builtins", "dict"): self.mapping,
            ("torch", "Size"): self.size,
            ("torch.serialization", "_get_layout"): self.first,
            ("torch.nn.parameter", "Parameter"): self.first,
            ("torch._tensor", "_rebuild_from_type_v2"): self.from_type,
            ("torch.jit._pickle", "build_intlist"): self.first,
            ("torch.jit._pickle", "build_tensorlist"): self.first,
            ("torch.jit._pickle", "build_doublelist"): self.first,
            ("torch.jit._pickle", "build_boollist"): self.first,
            ("torch.jit._pickle", "build_complexlist"): self.first,
            ("torch.jit._pickle", "restore_type_tag"): self.first,
        }
        rebuilds: dict[str, Builder] = {
            "tensor": self.tensor,
            "tensor_v2": self.tensor_v2,
            "tensor_v3": self.tensor_v3,
            "parameter": self.first,
            "parameter_with_state": self.first,
            "qtensor": self.quantized,
            "sparse_tensor": self.sparse,
            "meta_tensor_no_storage": self.meta,
            "nested_tensor": self.nested,
            "wrapper_subclass": self.wrapper,
            "device_tensor_from_numpy": self.from_numpy,
            "xla_tensor": self.from_numpy,
            "device_tensor_from_cpu_tensor": self.first,
        }
        self._builders.update({("torch._utils", f"_rebuild_{name}"): builder for name, builder in rebuilds.items()})

    # --- what the pickle machine asks -----------------------------------------------------------------------------

    def resolve(self, module: str, name: str) -> Global:
        key = (module, name)
        found = self._globals.get(key)
        if found is None:
            allowed = is_allowed(module, name, self.torchscript)
            found = self._globals[key] = Global(module, name, allowed, self._builders.get(key) if allowed else None)
        if not found.allowed:
            self.report.use(found)
        return found

    def persistent(self, pid: Any) -> Any:
        """A storage, or (very old) a module with its source: ``persistent_load`` of torch/serialization.py."""
        if type(pid) is tuple and len(pid) in (5, 6) and pid[0] in ("storage", b"storage"):
            return self._storage(pid)
        if type(pid) is tuple and len(pid) == 4 and pid[0] in ("module", b"module"):
            return pid[1]
        raise InvalidFile(f"{self.file}: a persistent id that is not a storage's")

    def _storage(self, pid: tuple[Any, ...]) -> Storage:
        _, kind, key, location, numel = pid[:5]
        if type(kind) is not Global or type(key) not in (str, int, bytes) or type(numel) is not int or numel < 0:
            raise InvalidFile(f"{self.file}: a storage without a type, a key, or a count")
        if kind.name in _UNTYPED:
            dtype = ""
        elif kind.name in STORAGES and kind.module in ("torch", "torch.cuda", "torch.storage"):
            dtype = STORAGES[kind.name]
        else:
            raise InvalidFile(f"{self.file}: storage {key!r:.80} is of a type {self.report.show(kind)} that torch does not have")
        packed = _PACKED.get(kind.name, "")
        view = pid[5] if len(pid) == 6 else None
        where = (self.area, key, dtype, numel, packed, view if view is None or self._is_view(view) else None)
        found = self.storages.get(where)
        if found is None:
            key = key.decode("latin-1") if type(key) is bytes else str(key)
            location = location.decode("latin-1") if type(location) is bytes else location
            place = location if type(location) is str else ""
            found = Storage(self.area, key, dtype or "U8", 1 if packed else itemsize(dtype), numel, packed or place)
            if view is not None:
                self._narrow(found, view)
            self.storages[where] = found
        return found

    @staticmethod
    def _is_view(view: Any) -> bool:
        return type(view) is tuple and len(view) == 3 and all(type(item) in (str, int, bytes) for item in view)

    def _narrow(self, storage: Storage, view: Any) -> None:
        if not self._is_view(view):
            raise InvalidFile(f"{self.file}: storage {storage.key!r:.80} has a view that is not (key, offset, size)")
        _, offset, size = view
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0 or offset + size > storage.whole:
            raise InvalidFile(
                f"{self.file}: a view of storage {storage.key!r:.80} takes {size!r:.40} from {offset!r:.40} of {storage.whole}"
            )
        storage.view, storage.numel = offset, size

    # --- containers -----------------------------------------------------------------------------------------------

    def mapping(self, args: tuple[Any, ...]) -> Any:
        """``OrderedDict()``, ``OrderedDict([[key, value], ...])``, ``Counter({...})``."""
        made: dict[Any, Any] = {}
        if args and type(args[0]) is dict:
            made.update(args[0])
        elif args and type(args[0]) is list:
            for pair in args[0]:
                if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
                    raise InvalidFile(f"{self.file}: a mapping made of something that is not pairs")
                made[pair[0]] = pair[1]
        return made

    def default_mapping(self, args: tuple[Any, ...]) -> Any:
        return self.mapping(args[1:])

    def sequence(self, args: tuple[Any, ...]) -> Any:
        return list(args[0]) if args and type(args[0]) in (list, tuple) else []

    def size(self, args: tuple[Any, ...]) -> Any:
        return tuple(args[0]) if args and type(args[0]) in (list, tuple) else args

    def first(self, args: tuple[Any, ...]) -> Any:
        """Functions that add nothing to their first argument that matters here: a parameter is its tensor."""
        return args[0] if args else None

    # --- tensors --------------------------------------------------------------------------------------------------

    def tensor(self, args: tuple[Any, ...]) -> Any:
        return self._tensor(args, "tensor", 4)

    def tensor_v2(self, args: tuple[Any, ...]) -> Any:
        """(storage, offset, size, stride, requires_grad, hooks[, metadata])"""
        made = self._tensor(args, "tensor_v2", 4)
        if len(args) > 6:
            _mark(made, args[6])
        return made

    def tensor_v3(self, args: tuple[Any, ...]) -> Any:
        """(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]): the dtype is not the storage's."""
        made = self._tensor(args, "tensor_v3", 7)
        made.dtype, made.unsupported = self._dtype(args[6])
        if len(args) > 7:
            _mark(made, args[7])
        return made

    def _tensor(self, args: tuple[Any, ...], what: str, least: int) -> TensorRef:
        if len(args) < least:
            raise InvalidFile(f"{self.file}: _rebuild_{what} with {len(args)} arguments, {least} or more expected")
        storage, offset, shape, strides = args[:4]
        if type(storage) is not Storage or type(offset) is not int or offset < 0:
            raise InvalidFile(f"{self.file}: _rebuild_{what} without a storage, or with an offset that is no count")
        shape, strides = self._counts(shape, what), self._counts(strides, what)
        if len(shape) != len(strides):
            raise InvalidFile(f"{self.file}: a tensor of {len(shape)} dimensions with {len(strides)} strides")
        made = TensorRef(storage, storage.dtype, shape, strides, offset)
        if storage.location.startswith("packed"):
            made.unsupported = f"{storage.location} tensor"
        elif storage.location == "meta":
            made.unsupported = "meta tensor: it has no data"
        return made

    def _counts(self, counts: Any, what: str) -> tuple[int, ...]:
        if type(counts) is list:
            counts = tuple(counts)
        if type(counts) is not tuple or len(counts) > MAX_DIMENSIONS:
            raise InvalidFile(f"{self.file}: _rebuild_{what}: a shape or strides of no use")
        for count in counts:
            if type(count) is not int or not 0 <= count < 1 << 63:
                raise InvalidFile(f"{self.file}: _rebuild_{what}: {count!r:.40} in a shape or in strides")
        return counts

    def _dtype(self, value: Any) -> tuple[str, str]:
        """(our dtype, why it is unsupported)"""
        if type(value) is Global and value.module == "torch" and value.allowed:
            if value.name in DTYPES:
                return DTYPES[value.name], ""
            return "U8", f"torch.{value.name} tensor"
        raise InvalidFile(f"{self.file}: a tensor's dtype is not one of torch's")

    def quantized(self, args: tuple[Any, ...]) -> Any:
        """(storage, offset, size, stride, quantizer parameters, requires_grad, hooks)"""
        made = self._tensor(args, "qtensor", 5)
        parameters = args[4]
        scheme = parameters[0].name if type(parameters) is tuple and parameters and type(parameters[0]) is Global else ""
        if scheme.startswith("per_tensor") and len(parameters) == 3:
            scale, zero = parameters[1:]
            if type(scale) is float and type(zero) is int:
                made.quantizer = (scale, zero)
        elif scheme.startswith("per_channel") and len(parameters) == 4:
            scales, zeros, axis = parameters[1:]
            if type(scales) is TensorRef and type(zeros) is TensorRef and type(axis) is int:
                made.quantizer = (scales, zeros, axis)
        if made.quantizer is None:
            raise InvalidFile(f"{self.file}: a quantized tensor without a scheme that torch has")
        return made

    def sparse(self, args: tuple[Any, ...]) -> Any:
        """(layout, (indices..., values, size[, is_coalesced]))"""
        layout, data = args if len(args) == 2 else ("", ())
        kind = layout.rpartition(".")[2] if type(layout) is str else ""
        parts = [item for item in data if type(item) is TensorRef] if type(data) is tuple else []
        sizes = [item for item in data if type(item) is tuple] if type(data) is tuple else []
        if not kind.startswith("sparse_") or not parts or not sizes:
            raise InvalidFile(f"{self.file}: _rebuild_sparse_tensor without a layout, parts, or a size")
        name = kind.removeprefix("sparse_").upper()[:8]
        return TensorRef(None, parts[-1].dtype, self._counts(sizes[-1], "sparse_tensor"), unsupported=f"sparse {name} tensor")

    def meta(self, args: tuple[Any, ...]) -> Any:
        """(dtype, size, stride, requires_grad)"""
        if len(args) < 2:
            raise InvalidFile(f"{self.file}: _rebuild_meta_tensor_no_storage with {len(args)} arguments")
        return TensorRef(None, self._dtype(args[0])[0], self._counts(args[1], "meta"), unsupported="meta tensor: it has no data")

    def nested(self, args: tuple[Any, ...]) -> Any:
        """(buffer, sizes, strides, offsets)"""
        if not args or type(args[0]) is not TensorRef:
            raise InvalidFile(f"{self.file}: _rebuild_nested_tensor without its buffer")
        return TensorRef(None, args[0].dtype, args[0].shape, unsupported="nested tensor")

    def wrapper(self, args: tuple[Any, ...]) -> Any:
        """(class, dtype, size, stride, storage offset, layout, device, requires_grad)"""
        if len(args) < 3:
            raise InvalidFile(f"{self.file}: _rebuild_wrapper_subclass with {len(args)} arguments")
        name = self.report.show(args[0]) if type(args[0]) is Global else "an unknown class"
        dtype, _ = self._dtype(args[1])
        return TensorRef(None, dtype, self._counts(args[2], "wrapper_subclass"), unsupported=f"tensor subclass {name}")

    def from_numpy(self, args: tuple[Any, ...]) -> Any:
        """(array, dtype, device, requires_grad): a device without storages saved a NumPy array inside the pickle."""
        dtype = self._dtype(args[1])[0] if len(args) > 1 and type(args[1]) is Global else "F32"
        return TensorRef(
            None, dtype, _array_shape(args[0] if args else None), unsupported="tensor saved as a NumPy array inside the pickle"
        )

    def from_type(self, args: tuple[Any, ...]) -> Any:
        """(function, class, arguments, state): a tensor subclass, or a tensor with attributes."""
        if len(args) != 4 or type(args[2]) is not tuple:
            raise InvalidFile(f"{self.file}: _rebuild_from_type_v2 with {len(args)} arguments, 4 expected")
        function, _, inner, state = args
        if type(function) is not Global:
            self.report.note("_rebuild_from_type_v2 of something that is no global")
            return Call(function, inner)
        if function.build is None:
            self.report.use(function, "REDUCE")
            return Call(function, inner)
        made = function.build(inner)
        if type(made) is TensorRef and made.parts is None:
            made.parts = state
        return made


def _mark(tensor: TensorRef, metadata: Any) -> None:
    """Bits of ``metadata``: values that are to be conjugated or negated when they are read (torch/_utils.py,
    ``set_tensor_metadata``)."""
    if type(metadata) is dict:
        marks = [name for bit, name in (("conj", "conjugate"), ("neg", "negative")) if metadata.get(bit)]
        if marks and not tensor.unsupported:
            tensor.unsupported = f"{' and '.join(marks)} view"


def _array_shape(array: Any) -> tuple[int, ...]:
    """The shape in a pickled NumPy array's state: (version, shape, dtype, fortran order, data)."""
    state = array.state if type(array) is Call else None
    if type(state) is not tuple or len(state) != 5 or type(state[1]) is not tuple or len(state[1]) > MAX_DIMENSIONS:
        return ()
    return state[1] if all(type(size) is int and 0 <= size < 1 << 63 for size in state[1]) else ()
