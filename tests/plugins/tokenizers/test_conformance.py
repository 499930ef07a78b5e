"""Tokenizers against the conformance kit: it asks nothing of their tensors, as they have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelhub.testing import FormatConformance
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers


class Named(FormatConformance):
    """Of one file with a name that is not a directory's."""

    format = "tokenizer"
    directory = False
    file = ""

    def place(self, directory: Path, name: str = "sample") -> Path:
        return super().place(directory, name).with_name(self.file)


class TestTokenizers(Named):
    file = "small-tokenizer.json"

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "c": 3}, [("a", "b")]))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.add_special_tokens(["<end>"])
        made.save(str(path))


class TestSentencePiece(Named):
    file = "small.model"

    def write(self, path: Path, tensors: dict[str, Any]) -> None:
        model = sentencepiece_model_pb2.ModelProto()
        for number, piece in enumerate(("<unk>", "<s>", "</s>", "▁a", "▁b", "c")):
            kind = 2 if piece == "<unk>" else 3 if number < 3 else 1
            model.pieces.add(piece=piece, score=-float(number), type=kind)
        model.trainer_spec.model_type = 1
        model.trainer_spec.vocab_size = 6
        model.normalizer_spec.name = "identity"
        path.write_bytes(model.SerializeToString())
