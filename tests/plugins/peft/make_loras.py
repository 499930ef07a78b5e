"""Makes a tiny pipeline of diffusers, LoRAs for it, and what `fuse_lora` makes of them: make_loras.py DIRECTORY."""

import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from modelhub_peft.blocks import spellings
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

torch.manual_seed(0)
out = sys.argv[1]
unet = UNet2DConditionModel(
    block_out_channels=(32, 64),
    layers_per_block=2,
    sample_size=16,
    cross_attention_dim=32,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
vae = AutoencoderKL(
    block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2
)
text = CLIPTextModel(
    CLIPTextConfig(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=1000)
)
nothing = {"tokenizer": None, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
pipe = StableDiffusionPipeline(
    vae=vae, text_encoder=text, unet=unet, scheduler=DDIMScheduler(), requires_safety_checker=False, **nothing
)
pipe.save_pretrained(out + "/base")
# The U-Net as a single file spells it; diffusers' own converter takes it back.
plain = {name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
single = {}
for name, tensor in plain.items():
    module, _, leaf = name.rpartition(".")
    single[f"model.diffusion_model.{spellings(module)[-1]}.{leaf}"] = tensor
back = convert_ldm_unet_checkpoint(dict(single), dict(unet.config))
assert back.keys() == plain.keys(), sorted(back.keys() ^ plain.keys())[:8]
assert all(torch.equal(back[name], plain[name]) for name in plain)
save_file(single, out + "/single.safetensors")
pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_k", "conv1", "proj_in"]))
layers = get_peft_model_state_dict(pipe.unet)
StableDiffusionPipeline.save_lora_weights(
    out + "/noted", unet_lora_layers=layers, unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict()
)
kohya = {}
for name, tensor in layers.items():
    module, down = name.partition(".lora_")[0], ".lora_A" in name
    key = "lora_unet_" + module.replace(".", "_")
    kohya[key + (".lora_down.weight" if down else ".lora_up.weight")] = tensor.contiguous()
    kohya[key + ".alpha"] = torch.tensor(6.0)
save_file(kohya, out + "/kohya.safetensors")
for label, path in ("noted", out + "/noted"), ("kohya", out + "/kohya.safetensors"):
    fused = StableDiffusionPipeline.from_pretrained(out + "/base", requires_safety_checker=False, **nothing)
    fused.load_lora_weights(path)
    fused.fuse_lora(lora_scale=0.5)
    fused.unload_lora_weights()
    fused.unet.save_pretrained(f"{out}/fused-{label}")
