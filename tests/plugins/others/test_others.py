"""Models of other tools are told by their content and listed with what they are; what only has their names is left alone."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import torch


def tar(names: dict[str, bytes], mode: str = "w") -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return memory.getvalue()


def zipped(names: dict[str, bytes], before: bytes = b"") -> bytes:
    memory = io.BytesIO(before)
    memory.seek(len(before))
    with zipfile.ZipFile(memory, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return memory.getvalue()


PLAN = b"ftrt" + bytes(4) + struct.pack("<QQ", 9000, 1) + bytes([10, 3, 0, 26]) + bytes(64)
PREFIX = json.dumps({"task": "detect", "names": {"0": "cat"}}).encode()
MNN = bytes.fromhex(  # as MNN 3.6 writes it: the root's table at 32, its list of fields at 4
    "200000001c0024000800000 00c001000140005000600180 01c0007000000200 01c00000000000300e05e0300".replace(" ", "")
) + bytes(32)
NEMO = {"./": b"", "./model_config.yaml": b"target: nemo\n", "./model_weights.ckpt": bytes(40_000)}
MAR = {"MAR-INF/MANIFEST.json": b"{}", "handler.py": b"import os", "model.pt": b"x"}
FILES = {
    "yolo.engine": (PLAN, "tensorrt", "a TensorRT 10.3.0 engine"),
    "ultralytics.engine": (struct.pack("<I", len(PREFIX)) + PREFIX + PLAN, "tensorrt", "exported by Ultralytics"),
    "renamed.bin": (PLAN, "tensorrt", "a TensorRT 10.3.0 engine"),
    "net.mnn": (MNN, "mnn", "an MNN model"),
    "net.param": (b"7767517\n75 83\nInput data 0 1 data 0=227\n", "ncnn", "an ncnn model of 75 layers"),
    "pnnx.param": (b"7767517\n4 3\npnnx.Input input_0 0 1 x\n", "ncnn", "a PNNX model of 4 layers"),
    "chip.rknn": (b"RKNN" + bytes(60), "rknn", "a Rockchip RKNN model"),
    "asr.nemo": (tar(NEMO), "nemo", "a NeMo archive"),
    "zipped.nemo": (gzip.compress(tar(NEMO)), "nemo", "model_weights.ckpt is a PyTorch checkpoint"),
    "late.nemo": (tar({"tokenizer.model": bytes(90_000), "model_config.yaml": b"a: 1\n"}), "nemo", "a NeMo archive"),
    "serve.mar": (zipped(MAR), "torchserve", "runs the code in it"),
    "tiny.llamafile": (zipped({"tiny.gguf": b"GGUF", ".args": b"-m"}, b"MZqFpD='\n" + bytes(300)), "llamafile", "unzip takes"),
    "yolo.weights": (struct.pack("<3iQ", 0, 2, 5, 32_013_312) + bytes(400), "darknet", "Darknet's weights, 100 of them"),
    "older.weights": (struct.pack("<3ii", 0, 1, 0, 800) + bytes(400), "darknet", "neither names nor shapes"),
    "res-0000.params": (struct.pack("<3Q", 0x112, 0, 7) + bytes(90), "mxnet", "MXNet's parameters, 7 arrays"),
    "net.t7": (struct.pack("<3i", 4, 1, 3) + b"V 1" + struct.pack("<i", 13) + b"nn.Sequential", "torch7", "an object of Lua's"),
    "trees.cbm": (b"CBM1" + bytes(60), "catboost", "a CatBoost model"),
    "chip.hef": (b"\x01HEF" + bytes(60), "hailo", "a Hailo executable"),
    "phone.dlc": (zipped({"model": b"x", "model.params": b"y", "dlc.metadata": b"z"}), "snpe", "SNPE"),
    "hand.task": (zipped({"hand_detector.tflite": b"x", "hand_landmarks.tflite": b"y"}), "mediapipe", "2 TensorFlow Lite models"),
    "tagger.model": (b"#Parameter# /lstm/_0 {200,200} 640001 ZERO_GRAD\n-1.1e-01 +9.4e-02 ", "dynet", "DyNet's parameters"),
    "gemma.litertlm": (b"LITERTLM" + bytes(60), "litertlm", "a LiteRT-LM bundle"),
}  # fmt: skip


def test_what_it_is_and_what_opens_it(tmp_path: Path, modelhub) -> None:
    for name, (data, _, _) in FILES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(data)
    assert modelhub("scan", tmp_path, "--json").json["found"] == len(FILES)
    listed = {Path(item["path"]).name: item for item in modelhub("ls", "--json").json}
    for name, (data, format, reason) in FILES.items():
        item = listed[name]
        assert (item["format"], item["state"], item["size"]) == (format, "unsupported", len(data)), name
        assert "listed, not read" in item["reason"]
        assert reason in item["reason"]


def test_a_name_alone_is_no_claim(tmp_path: Path, modelhub) -> None:
    for name in FILES:
        for kind, data in {
            "empty": b"",
            "text": b"hello, world\n" * 99,
            "noise": bytes(range(1, 256)) * 99,
            "zip": zipped({"a": b"b"}),
        }.items():
            stem, dot, suffix = name.partition(".")
            if suffix != "bin":
                (tmp_path / f"{stem}-{kind}{dot}{suffix}").write_bytes(data)
    (tmp_path / "a.param").write_bytes(b"7767517 is a number\n")
    (tmp_path / "a.llamafile").write_bytes(zipped({"README": b"no weights"}, b"MZqFpD='\n" + bytes(300)))
    (tmp_path / "a.nemo").write_bytes(tar({"readme.txt": b"hello"}))
    summary = modelhub("scan", tmp_path, "--json").json
    assert [item["format"] for item in modelhub("ls", "--json").json] in ([], ["tflite"])
    assert summary["found"] <= 1


def test_a_program_of_torch_export(tmp_path: Path, modelhub) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "linear.pt2")
    shown = modelhub("show", tmp_path / "linear.pt2", "--json", status=None).json
    assert (shown["format"], shown["state"]) == ("pt2", "unsupported")
    assert "torch.export.load opens it" in shown["reason"]


def test_files_that_belong_together_are_one_model(tmp_path: Path, modelhub) -> None:
    for name, data in {
        "ocr.param": b"7767517\n2 2\nInput in 0 1 in\n", "ocr.bin": bytes(4000),
        "net.mnn": MNN, "net.mnn.weight": bytes(500),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (2, 0)
    listed = {item["name"]: item["size"] for item in modelhub("ls", "--json").json}
    assert listed == {"ocr": 4028, "net": len(MNN) + 500}


def test_ctranslate2_is_a_directory(tmp_path: Path, modelhub) -> None:
    model = tmp_path / "faster-whisper"
    model.mkdir()
    header = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 0)
    (model / "model.bin").write_bytes(header + bytes(100))
    for name in ("config.json", "vocabulary.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "notes.doc").write_text("something else")
    summary = modelhub("scan", tmp_path, "--json").json
    assert (summary["found"], summary["unknown"]) == (1, 1)
    (listed,) = modelhub("ls", "--json").json
    assert (listed["name"], listed["format"], listed["size"]) == ("faster-whisper", "ctranslate2", len(header) + 106)
    assert "WhisperSpec" in modelhub("show", model, "--json", status=None).json["reason"]
    (model / "model.bin").write_bytes(bytes(100))
    modelhub("scan", tmp_path)
    assert not [item for item in modelhub("ls", "--json").json if item["state"] != "missing"]


def test_a_spacy_pipeline_is_a_directory(tmp_path: Path, modelhub) -> None:
    """As ``nlp.to_disk`` leaves it; ``meta.json`` by itself may be anybody's."""
    model = tmp_path / "en_small-3.7.0"
    (model / "ner").mkdir(parents=True)
    said = {"lang": "en", "name": "small", "version": "3.7.0", "spacy_version": ">=3.7,<3.8", "pipeline": ["tok2vec", "ner"]}
    (model / "meta.json").write_text(json.dumps(said))
    (model / "config.cfg").write_text('[nlp]\nlang = "en"\n')
    (model / "ner" / "model").write_bytes(bytes(5000))
    modelhub("scan", tmp_path)
    (row,) = modelhub("ls", "--json").json
    assert (row["name"], row["format"], row["state"]) == ("en_small-3.7.0", "spacy", "unsupported")
    assert "en_small 3.7.0: tok2vec, ner" in row["reason"]
    assert row["size"] == sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    for text in ("[1]", json.dumps({"lang": "en"}), json.dumps({**said, "lang": 5})):
        (model / "meta.json").write_text(text)
        modelhub("scan", tmp_path)
        assert not [item for item in modelhub("ls", "--json").json if item["state"] != "missing"]
