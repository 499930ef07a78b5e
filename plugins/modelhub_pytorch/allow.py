"""Which globals a checkpoint may name, and the record of those it should not.

An allow-list: what ``torch.load(weights_only=True)`` accepts by itself (torch 2.13, ``_weights_only_unpickler.py``), and plain
containers, numbers and NumPy arrays, which training loops save. Everything else is reported by name. (module, name) are
compared as a pair, never joined by a dot: ``("torch", "serialization.os.system")`` is not ``torch.serialization``'s anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Finding

from modelhub_pytorch.stubs import Global

MAX_FINDINGS = 100
"""Foreign globals named one by one; the rest are counted."""

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "QInt8Storage": "I8",
    "QUInt8Storage": "U8",
    "QInt32Storage": "I32",
    "QUInt4x2Storage": "U8",
    "QUInt2x4Storage": "U8",
}
"""torch's typed storages -> our dtypes. Packed ones hold bytes."""

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "double": "F64",
    "float": "F32",
    "half": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "long": "I64",
    "int": "I32",
    "short": "I16",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "complex32": "C32",
    "complex64": "C64",
    "complex128": "C128",
    "chalf": "C32",
    "cfloat": "C64",
    "cdouble": "C128",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
    "qint8": "I8",
    "quint8": "U8",
    "qint32": "I32",
}
"""torch's dtypes -> ours."""

_ODD_DTYPES = {
    "quint4x2",
    "quint2x4",
    "bits8",
    "bits16",
    "bits1x8",
    "bits2x4",
    "bits4x2",
    *(f"{u}int{n}" for u in ("", "u") for n in range(1, 8)),
}
_QSCHEMES = {f"per_{what}" for what in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")}
_REBUILDS = (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor", "meta_tensor_no_storage",
    "nested_tensor", "wrapper_subclass", "device_tensor_from_numpy", "device_tensor_from_cpu_tensor", "xla_tensor",
)  # fmt: skip
_ELEMENTS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NUMPY_SCALARS = {
    "bool_",
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}

_PYTHON2 = frozenset({"long", "unicode"})
"""Names that protocol 2 has for ``int`` and ``str``."""

_ALLOWED: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict", "Counter", "defaultdict"}),
    "builtins": frozenset(
        {"set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "bytes", "bytearray", "complex", "slice"}
    ),
    "_codecs": frozenset({"encode"}),
    "torch": frozenset(
        {"Size", "Tensor", "device", *STORAGES, *DTYPES, *_ODD_DTYPES, *_QSCHEMES, "per_channel_affine_float_qparams"}
        | {f"{element}Tensor" for element in _ELEMENTS}
        | {
            "strided",
            "sparse_coo",
            "sparse_csr",
            "sparse_csc",
            "sparse_bsr",
            "sparse_bsc",
            "contiguous_format",
            "channels_last",
            "preserve_format",
        }
    ),
    "torch.cuda": frozenset({*STORAGES, *(f"{element}Tensor" for element in _ELEMENTS)}),
    "torch.sparse": frozenset(f"{element}Tensor" for element in _ELEMENTS),
    "torch.cuda.sparse": frozenset(f"{element}Tensor" for element in _ELEMENTS),
    "torch.storage": frozenset({"UntypedStorage", "TypedStorage", "_UntypedStorage", "_TypedStorage"}),
    "torch.nn.parameter": frozenset({"Parameter"}),
    "torch._utils": frozenset(f"_rebuild_{what}" for what in _REBUILDS),
    "torch._tensor": frozenset({"_rebuild_from_type_v2"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "numpy": frozenset({"dtype", "ndarray", *_NUMPY_SCALARS}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy.dtypes": frozenset(f"{name}DType" for name in ("Bool", "Str", "Bytes", "Float16", "Float32", "Float64"))
    | frozenset(f"{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    "torchao.quantization": frozenset(
        {"Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "Int4PlainInt32Tensor", "Int4PreshuffledTensor"}
        | {"Int4TilePackedTo4dTensor", "IntxOpaqueTensor", "NF4Tensor", "PerRow", "PerTensor", "PerBlock"}
    ),
    "torchao.quantization.quantize_.common.kernel_preference": frozenset({"KernelPreference"}),
    "torchao.quantization.quantize_.workflows.int8.int8_tensor": frozenset({"QuantizeTensorToInt8Kwargs"}),
    "torchao.quantization.quantize_.workflows.float8.float8_tensor": frozenset({"QuantizeTensorToFloat8Kwargs"}),
    "torchao.quantization.quant_primitives": frozenset({"MappingType"}),
    "torchao.quantization.granularity": frozenset({"PerRow", "PerTensor", "PerBlock"}),
}
"""What stands under torchao is what that tells ``torch.load`` to be safe: kinds of tensors and of scales, which run nothing."""

_TORCHSCRIPT = {
    "torch.jit._pickle": frozenset(
        {
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "build_complexlist",
            "build_tensor_from_id",
            "restore_type_tag",
        }
    )
}
"""What TorchScript's own unpickler knows (torch/csrc/jit/serialization/unpickler.cpp)."""


def is_allowed(module: str, name: str, torchscript: bool = False) -> bool:
    """Whether a checkpoint may name this global. A TorchScript archive also names the classes that its own code defines, and is
    never read by Python's pickle."""
    if name in _ALLOWED.get("builtins" if module == "__builtin__" else module, ()) or (
        module == "__builtin__" and name in _PYTHON2
    ):
        return True
    return torchscript and (module == "__torch__" or module.startswith("__torch__.") or name in _TORCHSCRIPT.get(module, ()))


class Report:
    """What pickles do that plain weights have no need of. ``where`` names the pickle in what is said of it."""

    def __init__(self, file: str = "") -> None:
        self.file = file
        self.where = ""
        self._uses: dict[tuple[str, str, str], dict[str, None]] = {}
        self._notes: dict[str, None] = {}

    def use(self, function: Global, how: str = "") -> None:
        """A foreign global is named, or (``how``: an opcode) called."""
        ways = self._uses.setdefault((self.where, function.module, function.name), {})
        if how:
            ways[how] = None

    def note(self, message: str) -> None:
        if len(self._notes) < MAX_FINDINGS:
            self._notes[f"{self.where}: {message}" if self.where else message] = None

    @staticmethod
    def show(function: Global) -> str:
        """The global's name, printable and of a bounded length."""
        text = f"{function.module}.{function.name}"
        text = text if text.isprintable() else ascii(text)
        return text if len(text) <= 200 else text[:200] + "..."

    def findings(self) -> Iterator[Finding]:
        """Everything noted so far, each thing once."""
        for number, ((where, module, name), ways) in enumerate(self._uses.items()):
            if number == MAX_FINDINGS:
                rest = f"{len(self._uses) - number} more globals are named that plain weights have no need of"
                yield Finding("pickle-globals", "unsafe", rest, file=self.file)
                break
            shown = self.show(Global(module, name, False))
            what = f"is called ({', '.join(ways)})" if ways else "is named, not called"
            place = f"{where}: " if where else ""
            yield Finding("pickle-globals", "unsafe", f"{place}{shown} {what}; nothing was run", file=self.file)
        for message in self._notes:
            yield Finding("pickle-globals", "unsafe", f"{message}; nothing was run", file=self.file)
