"""Embeddings that fastText 0.9.2 and gensim 4.4 wrote (``files``; ``truth.npz`` is what they give back), and damaged ones."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FILES = Path(__file__).with_name("files")


@pytest.fixture(scope="module")
def truth() -> Any:
    with np.load(FILES / "truth.npz") as found:
        return {name: found[name] for name in found.files}


def converted(modelhub: Any, source: Path, out: Path) -> dict[str, Any]:
    modelhub("convert", source, "--to", "npz", "-o", out)
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize("name", ["skip", "sup"])
def test_fasttexts_matrices(name: str, truth: Any, tmp_path: Path, modelhub) -> None:
    found = converted(modelhub, FILES / f"{name}.bin", tmp_path / "out.npz")
    assert found["input"].tobytes() == truth[f"{name}_in"].tobytes()
    assert found["output"].tobytes() == truth[f"{name}_out"].tobytes()
    shown = modelhub("show", FILES / f"{name}.bin", "--json").json["metadata"]
    assert shown["task"] == {"skip": "skipgram", "sup": "supervised"}[name]
    assert (shown["vocab_size"], shown["embedding_length"], shown["buckets"]) == (9, 10, 50)


def test_a_quantized_model_is_what_its_codes_stand_for(truth: Any, tmp_path: Path, modelhub) -> None:
    found = converted(modelhub, FILES / "q.ftz", tmp_path / "out.npz")
    assert found["input"].tobytes() == truth["q_in"].tobytes()
    assert found["output"].shape == (3, 8)
    shown = modelhub("show", FILES / "q.ftz", "--json").json
    assert (shown["format"], shown["precision"], shown["parameters"]) == ("fasttext", "PQ", 500 * 8 + 3 * 8)


@pytest.mark.parametrize("name", ["w2v.bin", "w2v.txt"])
def test_word2vecs_vectors(name: str, truth: Any, tmp_path: Path, modelhub) -> None:
    found = converted(modelhub, FILES / name, tmp_path / "out.npz")
    assert found["vectors"].tobytes() == truth["w2v"].tobytes()


def test_many_vectors_with_googles_newlines(tmp_path: Path, modelhub) -> None:
    vectors = np.random.default_rng(0).standard_normal((20_000, 30)).astype("<f4")
    vectors[7] = np.frombuffer(b"\n \n " * 30, "<f4")  # bytes that look like the ends of words and lines
    rows = b"".join(b"w\xc3\xa9%d " % number + row.tobytes() + b"\n" for number, row in enumerate(vectors))
    (tmp_path / "google.bin").write_bytes(b"20000 30\n" + rows)
    text = "\n".join(f"w{number} " + " ".join(map(str, row)) for number, row in enumerate(vectors[8:2000]))
    (tmp_path / "text.vec").write_text(f"1992 30\n{text}\n")
    assert converted(modelhub, tmp_path / "google.bin", tmp_path / "a.npz")["vectors"].tobytes() == vectors.tobytes()
    assert (converted(modelhub, tmp_path / "text.vec", tmp_path / "b.npz")["vectors"] == vectors[8:2000]).all()


def test_what_says_not_how_many_it_has_or_is_compressed_is_told(tmp_path: Path, modelhub) -> None:
    random = np.random.default_rng(0)

    def glove(words: list[str]) -> str:
        return "".join(f"{word} {' '.join(f'{x:.5f}' for x in random.standard_normal(50))}\n" for word in words)

    (tmp_path / "glove.6B.50d.txt").write_text(glove(["the", ",", ".", "of", "to", "1", "ü", "and", "in"]))
    for name, data in {
        "GoogleNews-vectors.bin": (FILES / "w2v.bin").read_bytes(),
        "lid.bin": (FILES / "sup.bin").read_bytes(),
    }.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    (tmp_path / "table.txt").write_text(glove([str(number) for number in range(20)]))  # an index and measurements
    (tmp_path / "prose.txt").write_text("word after word\n" * 50)
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(b"a line\n" * 999))
    modelhub("scan", tmp_path)
    rows = {Path(row["path"]).name: row for row in modelhub("ls", "--json").json}
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(
        ["glove.6B.50d.txt", "GoogleNews-vectors.bin.gz", "lid.bin.gz"], "unsupported"
    )
    assert "no_header=True" in rows["glove.6B.50d.txt"]["reason"]
    assert "gunzip" in rows["lid.bin.gz"]["reason"]


def test_truncated_and_hostile_ones(tmp_path: Path, modelhub) -> None:
    for name in ("skip.bin", "q.ftz", "w2v.bin"):
        data = (FILES / name).read_bytes()
        for number, cut in enumerate((70, len(data) // 3, len(data) // 2, len(data) - 60)):
            (tmp_path / f"cut{number}-{name}").write_bytes(data[:cut])
    skip = bytearray((FILES / "skip.bin").read_bytes())
    for number, (at, new) in enumerate(
        {64: b"\xff\xff\xff\x7f", 68: b"\xff\xff\xff\xff", 84: b"\xff" * 7 + b"\x7f", 4: b"\x63\0\0\0"}.items()
    ):
        broken = bytearray(skip)
        broken[at : at + len(new)] = new
        (tmp_path / f"bad{number}.bin").write_bytes(broken)
    (tmp_path / "huge.bin").write_bytes(b"999999999 99999\nword " + bytes(1000))
    (tmp_path / "wide.vec").write_bytes(b"1 3\nword 1.0 2.0\n")
    (tmp_path / "prose.txt").write_text("12 34\nis the beginning of a text that is no model\n")
    modelhub("scan", tmp_path)
    for item in modelhub("ls", "--json").json:
        assert item["state"] in ("invalid", "incomplete", "unsupported"), item
        assert not item["reason"].startswith("the plugin of"), item
        assert Path(item["path"]).name not in ("prose.txt", "wide.vec")


def test_a_vector_that_is_cut_off_fails_when_it_is_read(tmp_path: Path, modelhub) -> None:
    data = (FILES / "w2v.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[:-6])
    (tmp_path / "bad.vec").write_bytes((FILES / "w2v.txt").read_bytes().replace(b" 0.0", b" 0,0"))
    assert not modelhub("verify", tmp_path / "cut.bin", "--level", "values", "--json", status=None).json[0]["ok"]
    done = modelhub("verify", tmp_path / "bad.vec", "--level", "values", "--json", status=None)
    assert done.returncode
