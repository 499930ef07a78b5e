"""Files of llama.cpp from before GGUF, and of whisper.cpp, built by hand: nothing writes the former any more."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

WIDTH, HEADS, LAYERS, FEED_FORWARD, VOCABULARY = 64, 4, 2, 96, 300
F32, F16, Q4_0, Q8_0, Q4_2 = 0, 1, 2, 8, 4
BYTES = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), 3: (32, 20), 6: (32, 22), 7: (32, 24)}
OLD = {Q4_0: (32, 20), Q8_0: (32, 36), 3: (32, 24), 6: (32, 22), 7: (32, 24), Q4_2: (16, 10)}
"""Elements and bytes of a block before ggjt 3."""

Named = tuple[str, tuple[int, ...], int, bytes]


def tokens() -> list[tuple[bytes, float]]:
    """As the old converter wrote a SentencePiece vocabulary: the special ones, the bytes, pieces with plain spaces."""
    special = [(" ⁇ ".encode(), 0.0), (b"", 0.0), (b"", 0.0)]
    pieces = [(b" a", -0.0), (b" the", -1.0), ("é".encode(), -2.5), (b"   ", -3.0)]
    pieces += [(f" word{number}".encode(), -4.0 - number) for number in range(VOCABULARY - 3 - 256 - len(pieces))]
    return special + [(bytes([number]), 0.0) for number in range(256)] + pieces


def llama(kind: int = F32, sizes: dict[int, tuple[int, int]] = BYTES, kv_heads: int = HEADS) -> list[Named]:
    """Random weights of a small llama; matrices of ``kind``, norms F32. Shapes outermost first."""
    random = np.random.default_rng(3)
    rows = WIDTH // HEADS * kv_heads

    def weight(name: str, *shape: int) -> Named:
        actual = kind if len(shape) > 1 else F32
        block, nbytes = sizes[actual] if actual in sizes else BYTES[actual]
        count = int(np.prod(shape))
        values = (random.standard_normal(count) * 0.05).astype({F32: "<f4", F16: "<f2"}.get(actual, "<f4"))
        data = values.tobytes() if actual in (F32, F16) else _blocks(random, count // block, nbytes)
        return name, shape, actual, data

    found = [
        weight("tok_embeddings.weight", VOCABULARY, WIDTH),
        weight("norm.weight", WIDTH),
        weight("output.weight", VOCABULARY, WIDTH),
    ]
    for layer in range(LAYERS):
        found += [
            weight(f"layers.{layer}.attention.wq.weight", WIDTH, WIDTH),
            weight(f"layers.{layer}.attention.wk.weight", rows, WIDTH),
            weight(f"layers.{layer}.attention.wv.weight", rows, WIDTH),
            weight(f"layers.{layer}.attention.wo.weight", WIDTH, WIDTH),
            weight(f"layers.{layer}.attention_norm.weight", WIDTH),
            weight(f"layers.{layer}.feed_forward.w1.weight", FEED_FORWARD, WIDTH),
            weight(f"layers.{layer}.feed_forward.w2.weight", WIDTH, FEED_FORWARD),
            weight(f"layers.{layer}.feed_forward.w3.weight", FEED_FORWARD, WIDTH),
            weight(f"layers.{layer}.ffn_norm.weight", WIDTH),
        ]
    return found


def _blocks(random: np.random.Generator, count: int, nbytes: int) -> bytes:
    """Blocks whose first two bytes are a small float16 scale, and whose rest is anything."""
    blocks = np.frombuffer(random.bytes(count * nbytes), np.uint8).reshape(count, nbytes).copy()
    blocks[:, :2] = np.full(count, 0.01, "<f2").view(np.uint8).reshape(count, 2)
    return blocks.tobytes()


def build(
    tensors: Sequence[Named],
    magic: bytes = b"tjgg",
    version: int = 3,
    file_type: int = 0,
    vocabulary: Sequence[tuple[bytes, float]] = (),
) -> bytes:
    vocabulary = vocabulary or tokens()
    data = bytearray(magic)
    if magic != b"lmgg":
        data += struct.pack("<I", version)
    data += struct.pack("<7I", len(vocabulary), WIDTH, 32, HEADS, LAYERS, WIDTH // HEADS, file_type)
    for text, score in vocabulary:
        data += struct.pack("<I", len(text)) + text
        if magic != b"lmgg":
            data += struct.pack("<f", score)
    return bytes(data) + _tensors(tensors, len(data), aligned=magic == b"tjgg")


def _tensors(tensors: Sequence[Named], start: int, *, aligned: bool) -> bytes:
    data = bytearray()
    for name, shape, kind, content in tensors:
        data += struct.pack("<3I", len(shape), len(name), kind) + struct.pack(f"<{len(shape)}I", *reversed(shape)) + name.encode()
        if aligned:
            data += bytes(-(start + len(data)) % 32)
        data += content
    return bytes(data)


def whisper(mels: int = 80) -> bytes:
    data = b"lmgg" + struct.pack("<11I", 51864, 1500, 384, 6, 4, 448, 384, 6, 4, mels, 1)
    data += struct.pack("<2I", mels, 201) + bytes(4 * mels * 201)
    words = [b"a", b" b", b""]
    data += struct.pack("<I", len(words)) + b"".join(struct.pack("<I", len(word)) + word for word in words)
    tensors: list[Named] = [
        ("encoder.conv1.weight", (4, 2, 3), F16, bytes(48)),
        ("encoder.conv1.bias", (4, 1), F32, bytes(16)),
        ("decoder.token_embedding.weight", (6, 4), F16, bytes(48)),
    ]
    return data + _tensors(tensors, len(data), aligned=False)
