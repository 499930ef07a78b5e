"""What a plugin sees of one file."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from modelhub import File

PIECES = st.lists(st.sampled_from([b"a", b"b1", b"7", b"},", b"}", b",", b'"w.12":{', b"lora_", b"}3,"]), max_size=12).map(
    b"".join
)
WORDS = st.lists(
    st.lists(st.sampled_from([b"a", b"b1", b"1", b"}", b",", b"lora_"]), min_size=1, max_size=4).map(b"".join), max_size=3
)


@given(PIECES, WORDS)
@example(b'{"layers.12.lora_up":{"shape":[4]},"b":{}}', [b".lora_up"])
@example(b"x}1,y", [b"},y"])
@example(b"ab},c", [b"b},c"])
@example(b"a12b", [b"2"])
@example(b"},", [b"}"])
@example(b"a},a", [b",a"])
def test_what_a_head_mentions_is_what_stands_in_it(tmp_path_factory, head: bytes, words: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "mentions.bin"
    path.write_bytes(head)
    with File(str(path)) as file:
        assert file.mentions(tuple(words)) == any(word in head for word in words)
        assert file.mentions((*words, b"lora_")) == (b"lora_" in head or any(word in head for word in words))


def test_only_the_head_is_looked_through(tmp_path: Path) -> None:
    path = tmp_path / "long.bin"
    path.write_bytes(bytes(20_000) + b"lora_up")
    with File(str(path)) as file:
        assert not file.mentions((b"lora_up",))
