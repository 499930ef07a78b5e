"""CRC-32C: the published values, and pieces put together."""

from __future__ import annotations

import random

import pytest
from modelhub import checksums, crc32c

KNOWN = {
    b"": 0,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
}
"""RFC 3720, B.4."""


@pytest.mark.parametrize("data", [*KNOWN])
def test_known_values(data: bytes) -> None:
    assert crc32c(data) == KNOWN[data]


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 70_001, (1 << 20) + 3, (5 << 20) + 1021])
def test_long_runs_are_what_their_bytes_are(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_library", lambda: None)
    data = random.Random(length).randbytes(length)
    table, state = checksums._table(), 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    assert crc32c(data) == state ^ 0xFFFFFFFF
    cut = length // 3
    assert crc32c(data[cut:], crc32c(memoryview(data)[:cut])) == crc32c(data)
