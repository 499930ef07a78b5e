"""Conversions, through the functions that the command line calls: what is refused, what is verified, what is left behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from modelhub import Patch, Put, Recipe, Table, plugins
from modelhub.convert import ConvertReport, carry_out, convert
from modelhub.detect import inspect_path
from modelhub.errors import ConversionError, MissingCapability, OutputExists, PluginError, UsageError, VerificationError
from modelhub.model import Model, from_found
from modelhub.plan import ConvertOptions, make_plan
from modelhub.scratch import PREFIX, Scratch, sweep
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def look(path: Path) -> Model:
    return from_found(inspect_path(str(path), plugins.get().formats))


def run(path: Path, to: str, output: Path | None = None, **options: object) -> ConvertReport:
    return convert(
        look(path),
        to=to,
        output=None if output is None else str(output),
        options=ConvertOptions(**options),  # type: ignore[arg-type]
        plugins=plugins.get(),
    )


def scratch_in(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name.startswith(PREFIX)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(100, 30) for i in range(5)} | {"steps": torch.arange(7), "norm": torch.ones(30)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"format": "pt", "author": "me"})
    return path


def test_a_recipe_rounds_floats_and_leaves_integers(weights: Path) -> None:
    report = run(weights, "safetensors:bf16")
    assert report.verified
    assert report.output == str(weights.with_name("model.bf16.safetensors"))
    before, after = load_file(weights), load_file(report.output)
    assert torch.equal(after["layer.3.weight"], before["layer.3.weight"].bfloat16())
    assert torch.equal(after["steps"], before["steps"])
    with safe_open(report.output, "pt") as file:
        assert file.metadata()["author"] == "me"
    by_name = {entry["name"]: entry for entry in report.to_json()["tensors"]}
    exact = (before["layer.3.weight"].bfloat16().double() - before["layer.3.weight"].double()).square().mean().sqrt().item()
    assert by_name["layer.3.weight"]["rmse"] == pytest.approx(exact, rel=1e-4)
    assert by_name["steps"] == {"name": "steps", "dtype": "I64"}
    assert not scratch_in(weights.parent)


def test_overflow_is_reported_by_tensor(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_file({"a": torch.tensor([1e6, 2.0, -7e4, 65504.0]), "b": torch.ones(3)}, path)
    assert run(path, "safetensors:f16").overflows == {"a": 2}


@pytest.mark.parametrize("to", ["nothing", "safetensors:q9_z"])
def test_an_unknown_target_is_wrong_usage_and_lists_what_there_is(weights: Path, to: str) -> None:
    with pytest.raises(UsageError, match=r"there is no format called|has no recipe called") as caught:
        run(weights, to)
    assert "safetensors" in caught.value.hint or "bf16" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "to"), [("x.pt", "safetensors"), ("x.safetensors", "pytorch"), ("x", "safetensors"), ("x.zip", "pytorch")]
)
def test_a_name_that_says_another_format_is_wrong_usage(weights: Path, tmp_path: Path, name: str, to: str) -> None:
    with pytest.raises(UsageError, match=r"is a name for|is no name for") as caught:
        run(weights, to, tmp_path / name)
    assert caught.value.hint.startswith("call it x.")
    assert not (tmp_path / name).exists()


def test_an_output_is_never_overwritten_unless_forced(weights: Path) -> None:
    target = weights.with_name("out.safetensors")
    target.write_text("precious")
    with pytest.raises(OutputExists, match="there already"):
        run(weights, "safetensors", target)
    assert target.read_text() == "precious"
    run(weights, "safetensors", target, force=True)
    assert load_file(target).keys() == load_file(weights).keys()


def test_the_source_is_never_the_output(weights: Path) -> None:
    for path in (weights, weights.with_name("link.safetensors")):
        if path != weights:
            path.symlink_to(weights)
        with pytest.raises(ConversionError, match="the source itself"):
            run(weights, "safetensors", path, force=True)
    hard = weights.with_name("hard.safetensors")
    os.link(weights, hard)
    with pytest.raises(ConversionError, match="a link to the source"):
        run(weights, "safetensors", hard, force=True)


def test_a_directory_that_holds_anything_else_is_not_replaced(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    source = tmp_path / "llama"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 30}))
    os.rename(weights, source / "model.safetensors")
    with pytest.raises(ConversionError, match="not replaced"):
        run(source, "huggingface", target, force=True)
    assert (target / "thesis.txt").read_text() == "years of work"
    run(source, "huggingface", tmp_path / "copy")
    run(source, "huggingface:bf16", tmp_path / "copy", force=True)
    assert load_file(tmp_path / "copy" / "model.safetensors")["norm"].dtype == torch.bfloat16
    assert not scratch_in(tmp_path)


def test_a_dtype_that_the_target_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"wave": torch.ones(3, dtype=torch.complex64)}, path)
    plan = make_plan(look(path), "safetensors", str(tmp_path / "o.safetensors"), ConvertOptions(), plugins.get())
    narrow = replace(plan.format, dtypes=("F32",))
    loaded = replace(plugins.get(), formats={**plugins.get().formats, "safetensors": narrow})
    with pytest.raises(ConversionError, match="cannot hold C64: tensor wave"):
        make_plan(look(path), "safetensors", str(tmp_path / "o.safetensors"), ConvertOptions(), loaded)


def test_a_dtype_that_no_recipe_changes_can_be_left_out(tmp_path: Path) -> None:
    torch.save({"wave": torch.ones(3, dtype=torch.complex128), "norm": torch.ones(3)}, tmp_path / "c.pt")
    with pytest.raises(ConversionError, match="cannot hold C128: tensor wave") as error:
        run(tmp_path / "c.pt", "safetensors:f32")
    assert error.value.hint == "--skip-unsupported leaves such tensors out"
    report = run(tmp_path / "c.pt", "safetensors", skip_unsupported=True)
    assert report.plan.losses == ("left out: wave (C128 tensor, which safetensors cannot hold)",)
    assert load_file(report.output).keys() == {"norm"}


def test_a_writer_that_mislays_bytes_is_caught_before_the_output_gets_its_name(weights: Path, tmp_path: Path) -> None:
    plan = make_plan(look(weights), "safetensors", str(tmp_path / "o.safetensors"), ConvertOptions(), plugins.get())
    for broken, said in ((_swapped, "other bytes"), (_renamed, "is not in the output")):
        bad = replace(plan, format=replace(plan.format, create=broken))
        with pytest.raises(VerificationError, match=said):
            carry_out(bad, plugins.get())
        assert not (tmp_path / "o.safetensors").exists()
        assert not scratch_in(tmp_path)


def _swapped(table: Table, options: object) -> Iterator[object]:
    """Writes the data of two equally large tensors in each other's place."""
    names = [tensor.name for tensor in table.tensors]
    first, second = names.index("layer.0.weight"), names.index("layer.1.weight")
    tensors = list(table.tensors)
    tensors[first], tensors[second] = (
        tensors[first]._replace(value=tensors[second].value),
        tensors[second]._replace(value=tensors[first].value),
    )
    return plugins.get().formats["safetensors"].create(replace(table, tensors=tuple(tensors)), options)  # type: ignore[misc,return-value]


def _renamed(table: Table, options: object) -> Iterator[object]:
    tensors = (table.tensors[0]._replace(name="other"), *table.tensors[1:])
    return plugins.get().formats["safetensors"].create(replace(table, tensors=tensors), options)  # type: ignore[misc,return-value]


def test_a_writer_cannot_patch_a_tensor(weights: Path, tmp_path: Path) -> None:
    def scribble(table: Table, options: object) -> Iterator[object]:
        writer = plugins.get().formats["safetensors"].create(table, options)  # type: ignore[misc]
        answer = None
        places = []
        while True:
            try:
                piece = writer.send(answer)
            except StopIteration:
                break
            answer = yield piece
            if isinstance(piece, Put):
                places.append(answer)
        yield Patch(places[-1].offset, lambda: b"\x01\x02")

    plan = make_plan(look(weights), "safetensors:bf16", str(tmp_path / "o.safetensors"), ConvertOptions(), plugins.get())
    with pytest.raises(PluginError, match="which are a tensor's"):
        carry_out(replace(plan, format=replace(plan.format, create=scribble)), plugins.get())


@pytest.mark.parametrize("to", ["safetensors", "safetensors:bf16", "pytorch"])
def test_a_disk_that_gives_back_other_bytes_is_caught(weights: Path, tmp_path: Path, to: str) -> None:
    """One flipped bit in one write: what a failing disk or memory does."""
    honest = os.pwrite
    target = tmp_path / ("o.pt" if to == "pytorch" else "o.safetensors")

    def failing(fd: int, data: memoryview, offset: int) -> int:
        if len(data) > 5000:
            data = memoryview(bytes([data[0] ^ 1]) + bytes(data[1:]))
        return honest(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(VerificationError, match="reads back with other bytes"):
            run(weights, to, target)
    assert not target.exists()
    assert not scratch_in(tmp_path)


def test_a_source_that_changes_meanwhile_is_noticed(weights: Path, tmp_path: Path) -> None:
    plan = make_plan(look(weights), "safetensors", str(tmp_path / "o.safetensors"), ConvertOptions(), plugins.get())

    def touch(stage: str, nbytes: int) -> None:
        os.utime(weights, ns=(1, 1))

    with pytest.raises(Exception, match="changed while it was being read"):
        carry_out(plan, plugins.get(), touch)
    assert not (tmp_path / "o.safetensors").exists()


def test_shards_are_called_after_the_output_whatever_its_suffix(weights: Path, tmp_path: Path) -> None:
    run(weights, "pytorch", tmp_path / "out" / "big.BIN", max_shard_size=20_000)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names[0].startswith("big-00001-of-0000")
    assert names[-1] == "big.bin.index.json"


def test_shards_get_an_index_and_none_of_them_replaces_anything(weights: Path, tmp_path: Path) -> None:
    report = run(weights, "safetensors", tmp_path / "out" / "big.safetensors", max_shard_size=20_000)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == [f"big-0000{i}-of-00005.safetensors" for i in range(1, 6)] + ["big.safetensors.index.json"]
    assert look(Path(report.output)).state == "ready"
    index = json.loads((tmp_path / "out" / "big.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(weights))
    stamp = os.stat(tmp_path / "out" / names[0]).st_mtime_ns
    (tmp_path / "out" / names[0]).rename(tmp_path / "aside")
    with pytest.raises(OutputExists):
        run(weights, "safetensors", tmp_path / "out" / "big.safetensors", max_shard_size=20_000)
    assert not (tmp_path / "out" / names[0]).exists()
    assert os.stat(tmp_path / "aside").st_mtime_ns == stamp


def test_scratch_of_the_dead_is_swept_and_of_the_living_left(tmp_path: Path) -> None:
    with Scratch(str(tmp_path)) as living:
        assert sweep(str(tmp_path)) == []
        assert os.path.isdir(living.path)
    code = f"import os; from modelhub.scratch import Scratch; s = Scratch({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    import sys

    subprocess.run([sys.executable, "-c", code], check=False)
    left = scratch_in(tmp_path)
    assert len(left) == 1
    with Scratch(str(tmp_path)):
        assert not (tmp_path / left[0]).exists()
    assert not scratch_in(tmp_path)


def test_a_disk_that_is_too_small_is_said_before_and_a_full_one_after(weights: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        # Without the right to mount: the plan's own arithmetic is what can be held.
        plan = make_plan(look(weights), "safetensors", str(disk / "o.safetensors"), ConvertOptions(), plugins.get())
        with pytest.raises(ConversionError, match="bytes free"):
            carry_out(replace(plan, free=plan.size - 1), plugins.get())
        return
    try:
        plan = make_plan(look(weights), "safetensors", str(disk / "o.safetensors"), ConvertOptions(), plugins.get())
        (disk / "ballast").write_bytes(bytes(40_000))
        with pytest.raises(ConversionError, match="the disk is full"):
            carry_out(replace(plan, free=1 << 40), plugins.get())
        assert os.listdir(disk) == ["ballast"]
        with pytest.raises(ConversionError, match="bytes free, the output takes"):
            run(weights, "safetensors", disk / "o.safetensors")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_a_plan_says_is_what_is_done(weights: Path, tmp_path: Path) -> None:
    plan = make_plan(look(weights), "safetensors:f16", str(tmp_path / "o.safetensors"), ConvertOptions(), plugins.get())
    said = plan.to_json()
    assert not (tmp_path / "o.safetensors").exists()
    report = carry_out(plan, plugins.get()).to_json()
    assert {entry["name"]: entry["dtype"] for entry in said["tensors"]} == {
        entry["name"]: entry["dtype"] for entry in report["tensors"]
    }
    assert said["size"] == 5 * 100 * 30 * 2 + 7 * 8 + 30 * 2
    assert plan.changed["norm"] == ("F32", "F16")
    header = struct.unpack("<Q", (tmp_path / "o.safetensors").read_bytes()[:8])[0]
    assert report["size"] == 8 + header + said["size"]


def test_a_large_tensor_is_cut_among_threads_and_still_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelhub import compare
    from modelhub.engine import write

    monkeypatch.setattr(write, "PIECE", 1 << 16)
    monkeypatch.setattr(compare, "PIECE", 1 << 16)
    values = torch.randn(1000, 333)
    save_file({"a": values}, tmp_path / "a.safetensors")
    for to, kind in (("safetensors", torch.float32), ("safetensors:f16", torch.float16), ("safetensors:f64", torch.float64)):
        report = run(tmp_path / "a.safetensors", to, tmp_path / "b.safetensors", force=True, threads=3)
        assert torch.equal(load_file(report.output)["a"], values.to(kind))


def test_a_missing_codec_is_said_before_anything_is_written(weights: Path, tmp_path: Path) -> None:
    scales = Recipe(name="scales", title="Scales only", choose=lambda tensor, table: "F8_E8M0" if tensor.name == "norm" else None)
    loaded = replace(plugins.get(), recipes=[scales])
    with pytest.raises(MissingCapability, match="tensor norm: nothing here can encode F8_E8M0"):
        make_plan(look(weights), "safetensors:scales", str(tmp_path / "o.safetensors"), ConvertOptions(), loaded)


def test_numbers_come_through_every_plain_pair(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((40, 8)).astype(np.float32)
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.from_numpy(values)}, path)
    for name, kind in (
        ("bf16", torch.bfloat16),
        ("f16", torch.float16),
        ("f8_e4m3", torch.float8_e4m3fn),
        ("f8_e5m2", torch.float8_e5m2),
    ):
        small = run(path, f"safetensors:{name}")
        back = run(Path(small.output), "safetensors:f32", tmp_path / f"{name}.back.safetensors")
        assert torch.equal(load_file(back.output)["x"], torch.from_numpy(values).to(kind).float())
