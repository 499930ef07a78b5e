"""Every kind of adapter that peft can merge and that is plain arithmetic comes out as peft's own ``merge_and_unload``; all others
are refused with what they are and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.conftest import Modelhub
from tests.plugins.peft.adapters import gpt2, llama, merged_by_peft, state, trained, worst

ATTENTION = ["q_proj", "k_proj", "o_proj"]
KINDS: dict[str, peft.PeftConfig] = {
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=[*ATTENTION, "down_proj"], alpha_pattern={"down_proj": 2}),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=[*ATTENTION, "down_proj"], rank_pattern={"down_proj": 3}),
    "lokr both": peft.LoKrConfig(r=2, alpha=3, target_modules=["q_proj"], decompose_both=True, decompose_factor=8),
    "lokr whole": peft.LoKrConfig(r=50, alpha=3, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 60}),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "down_proj"]),
    "oft solved": peft.OFTConfig(
        r=0, oft_block_size=8, target_modules=["q_proj"], use_cayley_neumann=False, coft=True, eps=0.9, block_share=True
    ),
    "oft three terms": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["k_proj"], num_cayley_neumann_terms=3),
    "hra": peft.HRAConfig(r=4, target_modules=["k_proj", "down_proj"]),
    "hra orthogonal": peft.HRAConfig(r=4, target_modules=["k_proj"], apply_GS=True),
    "miss": peft.MissConfig(r=7, target_modules=["k_proj", "down_proj"]),
    "miss mini": peft.MissConfig(r=8, mini_r=4, target_modules=["k_proj"], init_weights="mini"),
    "hira": peft.HiraConfig(r=4, target_modules=["k_proj", "down_proj"]),
    "vera": peft.VeraConfig(r=8, target_modules=["q_proj", "k_proj", "down_proj"]),
    "tokens": peft.TrainableTokensConfig(token_indices=[3, 150, 7], target_modules=["embed_tokens"]),
    "lora and tokens": peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [9, 4]}),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "parameters": peft.LoraConfig(r=2, target_modules=["k_proj"], target_parameters=["q_proj.weight"]),
    "gaussian": peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian"),
    "orthogonal": peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="orthogonal"),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llama``, ``tied`` and ``gpt2``."""
    root = tmp_path_factory.mktemp("bases")
    llama().save_pretrained(root / "llama")
    llama(tie_word_embeddings=True).save_pretrained(root / "tied")
    gpt2().save_pretrained(root / "gpt2")
    return root


def same_as_peft(base: Path, adapter: Path, output: Path, modelhub: Modelhub, kind: Any = None, far: float = 3e-6) -> None:
    modelhub("merge", base, "--adapter", adapter, "-o", output)
    ours, theirs = state(output), merged_by_peft(base, adapter, kind=kind or transformers.AutoModelForCausalLM)
    name, found = worst(ours, theirs)
    assert found < far, name
    assert worst(ours, state(base))[1] > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_does(kind: str, bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(llama(), KINDS[kind], tmp_path / "adapter")
    same_as_peft(bases / "llama", adapter, tmp_path / "out", modelhub)


def test_adalora_whose_ranks_were_cut(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    config = peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=4, total_step=10, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(llama(), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value += torch.randn_like(value) * 0.5
    kept = {
        name.removeprefix("base_model.model."): (torch.arange(6) % (3 if "v_proj" in name else 2) == 0).tolist()
        for name, _ in model.named_parameters()
        if "lora_E" in name
    }
    model.peft_config["default"].rank_pattern = kept
    model.save_pretrained(tmp_path / "adapter")
    shapes = {tuple(value.shape) for name, value in state(tmp_path / "adapter").items() if "lora_A" in name}
    assert shapes != {(6, 64)}
    same_as_peft(bases / "llama", tmp_path / "adapter", tmp_path / "out", modelhub)


@pytest.mark.parametrize(
    "config",
    [
        peft.VeraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=["c_attn"], fan_in_fan_out=True),
        peft.LoraConfig(r=3, target_modules=["wte", "c_fc"], use_dora=True, fan_in_fan_out=True),
    ],
    ids=["vera", "adalora", "dora"],
)
def test_matrices_that_are_kept_transposed(config: peft.PeftConfig, bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    adapter = trained(gpt2(), config, tmp_path / "adapter")
    same_as_peft(bases / "gpt2", adapter, tmp_path / "out", modelhub)


def test_tokens_of_an_embedding_that_is_the_output_too(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    adapter = trained(llama(tie_word_embeddings=True), config, tmp_path / "adapter")
    same_as_peft(bases / "tied", adapter, tmp_path / "out", modelhub)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(opened.lm_head.weight, opened.model.embed_tokens.weight)


class Net(torch.nn.Module):
    """Convolutions of one and two dimensions, and parameters that are no module's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.one = torch.nn.Conv1d(6, 8, 3)
        self.two = torch.nn.Conv2d(6, 8, 3)
        self.experts = Experts()


class Experts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.randn(3, 10, 14))
        self.down = torch.nn.Parameter(torch.randn(3, 7, 10))


CONVOLUTIONS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=2, target_modules=["one", "two"]),
    "dora": peft.LoraConfig(r=2, target_modules=["one", "two"], use_dora=True),
    "loha": peft.LoHaConfig(r=2, target_modules=["one", "two"]),
    "lokr": peft.LoKrConfig(r=2, target_modules=["two"]),
    "loha in three parts": peft.LoHaConfig(r=2, target_modules=["two"], use_effective_conv2d=True),
    "lokr in three parts": peft.LoKrConfig(r=1, target_modules=["two"], use_effective_conv2d=True, decompose_factor=2),
    "ia3": peft.IA3Config(target_modules=["two"], feedforward_modules=[]),
    "ia3 feed-forward": peft.IA3Config(target_modules=["two"], feedforward_modules=["two"]),
    "experts": peft.LoraConfig(
        r=2, target_modules=[], target_parameters=["experts.gate_up", "experts.down"], alpha_pattern={"down": 3}
    ),
    "adalora": peft.AdaLoraConfig(init_r=3, total_step=10, target_modules=["two"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=3, target_modules=["two"]),
    "hra": peft.HRAConfig(r=2, target_modules=["two"]),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_modules_of_a_model_that_nobody_knows(kind: str, tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "model.safetensors"
    save_file(Net().state_dict(), base)
    adapter = trained(Net(), CONVOLUTIONS[kind], tmp_path / "adapter")
    modelhub("merge", base, "--adapter", adapter, "-o", tmp_path / "out.safetensors")
    theirs = peft.PeftModel.from_pretrained(Net(), adapter).merge_and_unload().state_dict()
    ours = load_file(tmp_path / "out.safetensors")
    assert set(ours) == set(theirs)
    name, far = worst(ours, theirs)
    assert far < 3e-6, name
    assert worst(ours, load_file(base))[1] > 0.01


def test_experts_that_are_kept_transposed_are_told_by_their_shapes(tmp_path: Path, modelhub: Modelhub) -> None:
    from safetensors.torch import load_file, save_file

    def net() -> Net:
        model = Net()
        model.experts.is_transposed = True  # type: ignore[assignment]
        return model

    save_file(net().state_dict(), tmp_path / "model.safetensors")
    adapter = trained(net(), CONVOLUTIONS["experts"], tmp_path / "adapter")
    modelhub("merge", tmp_path / "model.safetensors", "--adapter", adapter, "-o", tmp_path / "out.safetensors")
    theirs = peft.PeftModel.from_pretrained(net(), adapter).merge_and_unload().state_dict()
    assert worst(load_file(tmp_path / "out.safetensors"), theirs)[1] < 3e-6


REFUSED: dict[str, tuple[peft.PeftConfig, str]] = {
    "boft": (peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]), "it is of the kind BOFT"),
    "bat": (peft.MissConfig(r=4, target_modules=["q_proj"], init_weights="bat"), 'MiSS of the kind "bat"'),
    "fourier": (peft.FourierFTConfig(n_frequency=8, target_modules=["q_proj"]), "it is of the kind FOURIERFT"),
    "prompt": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "it is of the kind PROMPT_TUNING"),
    "vera": (peft.VeraConfig(r=4, target_modules=["q_proj"], save_projection=False), "save_projection=True"),
    "pissa": (peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "pissa, which changes the base too"),
    "olora": (peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="olora"), "converted to plain LoRA"),
    "layers": (peft.LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)]), "layer_replication"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_with_what_they_are(kind: str, bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    config, says = REFUSED[kind]
    adapter = trained(llama(), config, tmp_path / "adapter")
    refused = modelhub("merge", bases / "llama", "--adapter", adapter, "-o", tmp_path / "out", status=3)
    assert says in refused.stderr
    assert not (tmp_path / "out").exists()
    shown = modelhub("show", adapter, "--json").json
    assert (shown["format"], shown["state"]) == ("peft", "ready")


def test_pissa_that_was_converted_is_a_plain_lora(bases: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(9)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value += torch.randn_like(value) * 0.1
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    adapter = tmp_path / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    same_as_peft(bases / "llama", adapter, tmp_path / "out", modelhub)
