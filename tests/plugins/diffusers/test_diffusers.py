"""Pipelines as diffusers saves them, and diffusion models in one file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MAKE = """
import sys, torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
torch.manual_seed(0)
unet = UNet2DConditionModel(block_out_channels=(32, 64), layers_per_block=1, sample_size=16, cross_attention_dim=32,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
vae = AutoencoderKL(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2)
text = CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
    vocab_size=1000))
pipeline = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=None, unet=unet.half(), scheduler=DDIMScheduler(),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False)
pipeline.save_pretrained(sys.argv[1], max_shard_size="1MB")
pipeline.unet.save_pretrained(sys.argv[1] + "/unet", variant="fp16")
from diffusers import ControlNetModel
beside = sys.argv[1] + "-parts/"
vae.save_pretrained(beside + "my-vae")
ControlNetModel(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=768,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    conditioning_embedding_out_channels=(16, 32)).save_pretrained(beside + "my-control")
wide = UNet2DConditionModel(block_out_channels=(32, 64), layers_per_block=1, sample_size=16, cross_attention_dim=1024,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from diffusers.utils import convert_state_dict_to_diffusers
wide.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
StableDiffusionPipeline.save_lora_weights(beside + "my-style",
    unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(wide)))
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion, its U-Net in shards."""
    place = tmp_path_factory.mktemp("pipelines") / "tiny-sd"  # and tiny-sd-parts
    done = subprocess.run([sys.executable, "-c", MAKE, place], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture
def pipeline(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "drive" / "tiny-sd"))


def test_a_pipeline_is_one_checkpoint(pipeline: Path, modelhub) -> None:
    modelhub("scan", pipeline.parent)
    (variant, listed) = sorted(modelhub("ls", "--json").json, key=lambda item: item["format"] == "diffusers")
    assert (listed["name"], listed["format"], listed["container"]) == ("tiny-sd", "diffusers", "safetensors")
    assert (listed["architecture"], listed["state"], listed["precision"]) == ("StableDiffusionPipeline", "ready", "F16")
    assert variant["path"] == "tiny-sd/unet/diffusion_pytorch_model.fp16.safetensors"  # another file of the same component
    weights = {path: load_file(path) for path in pipeline.rglob("*.safetensors") if ".fp16." not in path.name}
    assert listed["parameters"] == sum(tensor.numel() for file in weights.values() for tensor in file.values())
    assert modelhub("verify", "tiny-sd", "--json").json[0]["findings"] == []
    again = modelhub("scan", "--json").json
    assert (again["changed"], again["unchanged"]) == (0, 2)


def test_several_controlnets_are_parts_of_one_pipeline(pipeline: Path, made: Path, tmp_path: Path, modelhub) -> None:
    """As ``StableDiffusionControlNetPipeline.save_pretrained`` has them: the index names the first folder alone."""
    index = json.loads((pipeline / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "MultiControlNetModel"]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    one = made.with_name("tiny-sd-parts") / "my-control"
    before = modelhub("show", made, "--json").json["parameters"]
    for name in ("controlnet", "controlnet_1", "controlnet_7x"):
        shutil.copytree(one, pipeline / name)
    modelhub("scan", pipeline.parent)
    rows = {row["path"]: row for row in modelhub("ls", "--where", "format=diffusers", "--json").json}
    assert rows.keys() == {"tiny-sd", "tiny-sd/controlnet_7x"}
    weights = load_file(next(one.glob("*.safetensors")))
    assert rows["tiny-sd"]["parameters"] == before + 2 * sum(tensor.numel() for tensor in weights.values())
    modelhub("convert", pipeline, "--to", "diffusers", "-o", tmp_path / "out")
    written = load_file(next((tmp_path / "out" / "controlnet_1").glob("*.safetensors")))
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())


def test_tensors_by_component(pipeline: Path, tmp_path: Path, modelhub) -> None:
    modelhub("convert", pipeline, "--to", "safetensors", "-o", tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    text = load_file(pipeline / "text_encoder/model.safetensors")
    assert all(torch.equal(found[f"text_encoder/{name}"], tensor) for name, tensor in text.items())
    assert {name.split("/")[0] for name in found} == {"unet", "vae", "text_encoder"}


LOAD = """
import sys, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16, safety_checker=None, tokenizer=None)
found = {f"{part}/{name}": tensor.clone() for part in ("unet", "vae", "text_encoder")
         for name, tensor in getattr(pipeline, part).state_dict().items()}
save_file(found, sys.argv[2])
"""


def test_a_pipeline_is_written_as_diffusers_loads_it(pipeline: Path, tmp_path: Path, modelhub) -> None:
    (pipeline / "README.md").write_text("a card")
    (pipeline / "LICENSE.txt").write_text("do as you like")
    (pipeline / "unet" / "model.py").write_text("raise SystemExit('never run')")
    report = modelhub("convert", pipeline, "--to", "diffusers:bf16", "--max-shard-size", "1MB", "--json").json
    output = Path(report["output"])
    assert (output.name, report["verified"]) == ("tiny-sd.bf16", True)
    before = {str(path.relative_to(pipeline)) for path in pipeline.rglob("*") if path.is_file()}
    after = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    kept = {name for name in before if ".safetensors" not in name}
    assert {name for name in after if ".safetensors" not in name} == kept
    assert (output / "README.md").read_text() == "a card"
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in after
    assert json.loads((output / "text_encoder/config.json").read_text())["dtype"] == "bfloat16"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, output, tmp_path / "loaded.safetensors"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = load_file(tmp_path / "loaded.safetensors")
    parts = {"unet": None, "vae": None, "text_encoder": None}
    source = {
        f"{part}/{name}": tensor
        for part in parts
        for path in (pipeline / part).glob("*.safetensors")
        if ".fp16" not in path.name
        for name, tensor in load_file(path).items()
    }
    assert set(loaded) == set(source)
    for name, tensor in source.items():
        assert torch.equal(loaded[name], tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor), name
    assert modelhub("diff", output, pipeline, "--json", status=1).json["only_a"] == []
    safetensors = modelhub("convert", pipeline / "unet", "--to", "diffusers:f32", "-o", tmp_path / "unet32", "--json").json
    assert (tmp_path / "unet32" / "config.json").exists()
    assert safetensors["tensors"][0]["dtype"] == "F32"


def test_a_pipeline_in_the_cache_has_its_owner_s_name(pipeline: Path, tmp_path: Path, modelhub) -> None:
    """Links to blobs, as huggingface_hub keeps them; safety_checker [null, null] is not missed."""
    cache = tmp_path / "hub" / "models--me--tiny-sd"
    snapshot = cache / "snapshots" / ("a" * 40)
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in pipeline.rglob("*") if path.is_file()):
        shutil.copy(path, cache / "blobs" / f"{number:064x}")
        link = snapshot / path.relative_to(pipeline)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache / "blobs" / f"{number:064x}")
    assert json.loads((snapshot / "model_index.json").read_text())["safety_checker"] == [None, None]
    modelhub("scan", tmp_path / "hub")
    (listed,) = modelhub("ls", "--where", "format=diffusers", "--json").json
    assert (listed["name"], listed["state"]) == ("me/tiny-sd", "ready")


def test_what_changes_below_is_noticed(pipeline: Path, modelhub) -> None:
    modelhub("scan", pipeline.parent)
    for variant in pipeline.glob("unet/*.fp16*"):
        variant.unlink()
    shard = next(pipeline.glob("unet/*-00002-of-*.safetensors"))
    shard.unlink()
    modelhub("scan")
    (listed,) = modelhub("ls", "--where", "format=diffusers", "--json").json
    assert (listed["state"], shard.name in listed["reason"]) == ("incomplete", True)
    shutil.rmtree(pipeline / "vae")
    modelhub("scan")
    (listed,) = modelhub("ls", "--where", "format=diffusers", "--json").json
    assert "vae/" in listed["reason"]


def test_a_component_named_by_its_own_path(pipeline: Path, modelhub) -> None:
    shown = modelhub("show", pipeline / "text_encoder", "--json").json
    assert (shown["format"], shown["state"]) == ("huggingface", "ready")


@pytest.mark.parametrize("content", ["{", "[1]", '{"_class_name": "P", "../x": ["diffusers", "UNet"], "unet": ["diffusers", 7]}'])
def test_a_bad_index(content: str, tmp_path: Path, modelhub) -> None:
    (tmp_path / "drive/p").mkdir(parents=True)
    (tmp_path / "drive/p/model_index.json").write_text(content)
    modelhub("scan", tmp_path / "drive")
    states = [item["state"] for item in modelhub("ls", "--json").json]
    assert states == (["ready"] if "_class_name" in content else ["invalid"])


FLUX = ["double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.bias"]
FILES = {
    "stable-diffusion-1": ["cond_stage_model.transformer.text_model.final_layer_norm.bias", "model.diffusion_model.out.0.bias"],
    "stable-diffusion-xl": ["conditioner.embedders.1.model.ln_final.bias", "first_stage_model.decoder.conv_in.bias"],
    "stable-diffusion-3": [
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias",
        "first_stage_model.decoder.conv_in.bias",
    ],
    "flux-dev": [*FLUX, "guidance_in.in_layer.bias"],
    "flux-schnell": [f"model.diffusion_model.{name}" for name in FLUX],
    "chroma": [*FLUX, "distilled_guidance_layer.in_proj.bias"],
    "hunyuan-video": [*FLUX, "guidance_in.mlp.0.bias", "txt_in.individual_token_refiner.blocks.0.norm1.bias"],
    "": ["double_blocks.0.img_attn.qkv.bias", "single_blocks.0.linear1.bias", "guidance_in.in_layer.bias"],
}


@pytest.mark.parametrize("name", FILES)
def test_models_in_one_file(name: str, tmp_path: Path, modelhub) -> None:
    save_file({tensor: torch.ones(4) for tensor in FILES[name]}, tmp_path / "model.safetensors", {"format": "pt"})
    shown = modelhub("show", tmp_path / "model.safetensors", "--json").json
    assert (shown["format"], shown["container"], shown["architecture"] or "") == ("diffusion", "safetensors", name)
    modelhub("convert", tmp_path / "model.safetensors", "--to", "safetensors:f16", "-o", tmp_path / "half.safetensors")
    assert json.loads(json.dumps(sorted(load_file(tmp_path / "half.safetensors")))) == sorted(FILES[name])


def test_parts_and_adapters_that_stand_alone_have_their_directorys_name(made: Path, modelhub) -> None:
    parts = made.with_name("tiny-sd-parts")
    modelhub("scan", parts)
    rows = {row["name"]: row for row in modelhub("ls", "--json").json}
    assert {name: (row["format"], row["architecture"], row["state"]) for name, row in rows.items()} == {
        "my-vae": ("diffusers", "AutoencoderKL", "ready"),
        "my-control": ("diffusers", "ControlNetModel", "ready"),
        "my-style": ("lora", "stable-diffusion-2", "ready"),
    }
    assert rows["my-vae"]["parameters"] == sum(w.numel() for w in load_file(next(parts.glob("my-vae/*.safetensors"))).values())
    assert modelhub("show", "my-control", "--json").json["metadata"]["family"] == "stable-diffusion-1"
    assert modelhub("show", "my-style", "--json").json["metadata"]["rank"] == 4
    # As files, moved out of their directories, they are told by their tensors.
    alone = parts.parent / "alone"
    for name in ("my-vae", "my-control"):
        alone.mkdir(exist_ok=True)
        shutil.copy(next(parts.glob(f"{name}/*.safetensors")), alone / f"{name}.safetensors")
    shown = modelhub("show", alone / "my-vae.safetensors", "--json").json
    assert (shown["format"], shown["architecture"], shown["metadata"]["latent_channels"]) == ("diffusion", "vae", 4)
    shown = modelhub("show", alone / "my-control.safetensors", "--json").json
    assert (shown["architecture"], shown["metadata"]["family"]) == ("controlnet", "stable-diffusion-1")


WIDE = {name: torch.ones(4) for name in FILES["stable-diffusion-1"]}
PICKLES = {
    "sd.ckpt": ({"state_dict": WIDE, "global_step": 840000}, "stable-diffusion-1", {"global_step": 840000}),
    "style.pt": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(3, 1024)}, "name": "style"},
        "textual-inversion",
        {"vectors": 3, "family": "stable-diffusion-2", "name": "style"},
    ),
    "learned_embeds.bin": ({"<cat>": torch.ones(768)}, "textual-inversion", {"token": "<cat>", "family": "stable-diffusion-1"}),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_diffusion_models(name: str, tmp_path: Path, modelhub) -> None:
    content, kind, says = PICKLES[name]
    torch.save(content, tmp_path / name)
    shown = modelhub("show", tmp_path / name, "--json").json
    assert (shown["format"], shown["container"], shown["architecture"]) == ("diffusion", "pytorch", kind)
    assert {key: shown["metadata"].get(key) for key in says} == says
    assert modelhub("verify", tmp_path / name, "--json").json[0]["ok"]
    modelhub("convert", tmp_path / name, "--to", "safetensors", "-o", tmp_path / "out.safetensors")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1",)


def test_a_pickle_of_a_diffusion_model_is_as_unsafe_as_any(tmp_path: Path, modelhub) -> None:
    torch.save({"state_dict": WIDE, "callback": Evil()}, tmp_path / "sd.ckpt")
    (report,) = modelhub("verify", tmp_path / "sd.ckpt", "--json", status=1).json
    assert any(item["severity"] == "unsafe" for item in report["findings"])


EMBEDDINGS = {
    "emb_params": ({"emb_params": torch.ones(2, 768)}, {"vectors": 2, "family": "stable-diffusion-1"}),
    "xl": ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, {"vectors": 4, "family": "stable-diffusion-xl"}),
    "token": ({"<dog>": torch.ones(1024)}, {"token": "<dog>", "family": "stable-diffusion-2"}),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_in_safetensors(name: str, tmp_path: Path, modelhub) -> None:
    tensors, says = EMBEDDINGS[name]
    save_file(tensors, tmp_path / "e.safetensors", {"format": "pt"})
    shown = modelhub("show", tmp_path / "e.safetensors", "--json").json
    assert (shown["format"], shown["architecture"]) == ("diffusion", "textual-inversion")
    assert {key: shown["metadata"].get(key) for key in says} == says


def test_other_libraries_models_are_no_parts_of_a_pipeline(tmp_path: Path, modelhub) -> None:
    place = tmp_path / "bert"
    place.mkdir()
    save_file({"embeddings.weight": torch.ones(3, 4)}, place / "model.safetensors")
    (place / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    refused = modelhub("convert", place, "--to", "diffusers", "-o", tmp_path / "out", status=3)
    assert "config.json names no class of diffusers" in refused.stderr
