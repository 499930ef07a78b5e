"""Nomic-BERT (nomic-embed-text 1 and 1.5; 2 with its experts): a BERT with rotary embeddings and a gated MLP. Facts: llama.cpp
``conversion/bert.py`` (``NomicBertModel``), ``src/models/nomic-bert.cpp``.

The experts' common bias has no place there; llama.cpp computes without it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelhub import UnsupportedFile

from modelhub_gguf.architectures.config import Config
from modelhub_gguf.architectures.keys import count
from modelhub_gguf.architectures.names import decoder
from modelhub_gguf.architectures.rows import bert
from modelhub_gguf.architectures.transforms import TRANSPOSE, chain, reshaped

BERT = bert.ROWS[0]
ENDS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "emb_ln": "token_embd_norm",
}
BLOCK = {
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm1": "attn_output_norm",
    "mlp.fc11": "ffn_up",
    "mlp.fc12": "ffn_gate",
    "mlp.fc2": "ffn_down",
    "norm2": "layer_output_norm",
}
MOE = {
    **BLOCK,
    "mlp.fc1": "ffn_up",
    "mlp.router.layer": "ffn_gate_inp",
    "mlp.experts.mlp.w1": "ffn_up_exps",
    "mlp.experts.mlp.w2": "ffn_down_exps",
}
_TRAINED = {8192: 2048, 2048: 512}
"""What ``n_positions`` says, and on how many tokens the models were trained that say so."""


def _is_moe(raw: Any) -> bool:
    return bool(raw.get("moe_every_n_layers"))


def _complete(config: Config) -> None:
    """What llama.cpp would compute otherwise is refused; configurations say more than any model has."""
    moe = _is_moe(config.values)
    wanted = {
        "activation_function": "gelu" if moe else "swiglu", "causal": False, "prenorm": False, "use_rms_norm": False,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), moe),
    }  # fmt: skip
    for name, value in wanted.items():
        if name in config.values and config.values[name] != value:
            raise UnsupportedFile(f"config.json: {name} is {config.values[name]!r:.40}; in GGUF's nomic-bert it is {value!r}")
    if config.find("head_dim") is None:
        config.values["head_dim"] = config.head_dim
    positions = config.find("n_positions")
    if positions is not None and config.find("max_trained_positions") in (None, 2048):
        config.values["n_positions"] = _TRAINED.get(config.whole(positions, "n_positions"), positions)


def _experts(shape: tuple[int, ...], config: Config) -> tuple[int, ...]:
    inner, width = config.count("n_inner"), config.width
    if shape != (config.experts * inner, width):
        raise ValueError(f"not {config.experts} experts of {inner} rows of {width}")
    return config.experts, inner, width


STACK = reshaped(_experts)

ROWS = (
    replace(
        BERT,
        name="nomic-bert-moe",
        hf=("NomicBertModel",),
        model_type="nomic_bert",
        defaults={},
        config=_complete,
        keys=(*BERT.keys, count("moe_every_n_layers", "moe_every_n_layers"), count("expert_used_count", "moe_top_k")),
        names=decoder(MOE, ends=ENDS, layer="encoder.layers.{b}."),
        transforms={"blk.{b}.ffn_up_exps": STACK, "blk.{b}.ffn_down_exps": chain(STACK, TRANSPOSE)},
        ignored=(*BERT.ignored, r"encoder\.layers\.\d+\.mlp\.experts\.bias"),
        applies=_is_moe,
        back=None,
    ),
    replace(
        BERT,
        name="nomic-bert",
        hf=("NomicBertModel", "NomicBertForMaskedLM"),
        model_type="nomic_bert",
        defaults={"": {"layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000.0}},
        config=_complete,
        names=decoder(BLOCK, ends=ENDS, layer="encoder.layers.{b}."),
        back=None,
    ),
)
