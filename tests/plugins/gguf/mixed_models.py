"""Tables of models of many architectures, small in width and whole in everything that a mixture looks at.

Names, keys and shapes are those of llama.cpp's converter for each architecture, with fewer columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelhub import Extent, Metadata, Table, Tensor
from modelhub_gguf.fields import U32 as U32_TYPE
from modelhub_gguf.fields import Field, array, f32, string, u32

PLAIN = ("_norm.weight", "ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d")
"""Matrices with these in their names are written as F32 by the converter."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Spec:
    """``keys`` without the architecture before their names (unless they have a dot and start with general)."""

    architecture: str
    keys: dict[str, Field]
    shapes: Shapes

    @property
    def fields(self) -> dict[str, Field]:
        own = {f"{self.architecture}.{key}": field for key, field in self.keys.items()}
        return {"general.architecture": string(self.architecture), **own}

    def table(self, dtype: str = "F16") -> Table:
        """The table of a file as a converter writes it: matrices of ``dtype``, all else F32."""
        tensors, at = [], 0
        for name, shape, kind in self.tensors(dtype):
            nbytes = {"F32": 4, "F16": 2, "BF16": 2}[kind]
            for side in shape:
                nbytes *= side
            tensors.append(Tensor(name, kind, shape, Extent("/model.gguf", at, nbytes)))
            at += nbytes
        return Table(tuple(tensors), Metadata(native=self.fields), ("/model.gguf",))

    def tensors(self, dtype: str = "F16") -> Iterator[tuple[str, tuple[int, ...], str]]:
        """(name, shape, dtype)."""
        for name, shape in self.shapes.items():
            plain = len(shape) < 2 or any(part in name for part in PLAIN)
            yield name, shape, "F32" if plain else dtype


def _keys(layers: int, width: int, heads: int, shared: int = 0, hidden: int = 0, **more: Field) -> dict[str, Field]:
    found = {
        "block_count": u32(layers),
        "context_length": u32(512),
        "embedding_length": u32(width),
        "feed_forward_length": u32(hidden or 2 * width),
        "attention.head_count": u32(heads),
        "attention.layer_norm_rms_epsilon": f32(1e-5),
    }
    if shared:
        found["attention.head_count_kv"] = u32(shared)
    return {**found, **{name.replace("__", "."): field for name, field in more.items()}}


def _decoder(
    layers: int,
    width: int,
    shared: int,
    hidden: int,
    *,
    output: bool = True,
    bias: bool = False,
    experts: int = 0,
    shared_expert: int = 0,
) -> Shapes:
    """A decoder of the Llama family; ``shared``: columns of keys and values."""
    shapes: Shapes = {"token_embd.weight": (96, width), "output_norm.weight": (width,)}
    if output:
        shapes["output.weight"] = (96, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        for name, rows in (("q", width), ("k", shared), ("v", shared)):
            shapes[f"{block}attn_{name}.weight"] = (rows, width)
            if bias:
                shapes[f"{block}attn_{name}.bias"] = (rows,)
        shapes[f"{block}attn_output.weight"] = (width, width)
        shapes[f"{block}attn_norm.weight"] = shapes[f"{block}ffn_norm.weight"] = (width,)
        if experts:
            shapes[f"{block}ffn_gate_inp.weight"] = (experts, width)
            shapes[f"{block}ffn_gate_exps.weight"] = shapes[f"{block}ffn_up_exps.weight"] = (experts, hidden, width)
            shapes[f"{block}ffn_down_exps.weight"] = (experts, width, hidden)
        if shared_expert or not experts:
            end, inner = ("_shexp", shared_expert) if shared_expert else ("", hidden)
            shapes[f"{block}ffn_gate{end}.weight"] = shapes[f"{block}ffn_up{end}.weight"] = (inner, width)
            shapes[f"{block}ffn_down{end}.weight"] = (width, inner)
    return shapes


def _split_experts(layers: int, width: int, hidden: int) -> Shapes:
    shapes = {name: shape for name, shape in _decoder(layers, width, width // 4, hidden).items() if "ffn_" not in name}
    for layer in range(layers):
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (8, width)
        for expert in range(8):
            shapes[f"blk.{layer}.ffn_gate.{expert}.weight"] = shapes[f"blk.{layer}.ffn_up.{expert}.weight"] = (hidden, width)
            shapes[f"blk.{layer}.ffn_down.{expert}.weight"] = (width, hidden)
    return shapes


def _fused(layers: int, width: int, *, output: bool, positions: bool) -> Shapes:
    """Queries, keys and values in one matrix; no gate."""
    shapes: Shapes = {"token_embd.weight": (96, width), "output_norm.weight": (width,), "output_norm.bias": (width,)}
    if output:
        shapes["output.weight"] = (96, width)
    if positions:
        shapes["position_embd.weight"] = (64, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes[f"{block}attn_norm.weight"] = shapes[f"{block}attn_norm.bias"] = (width,)
        shapes[f"{block}attn_qkv.weight"] = (3 * width, width)
        shapes[f"{block}attn_qkv.bias"] = (3 * width,)
        shapes[f"{block}attn_output.weight"] = (width, width)
        shapes[f"{block}ffn_up.weight"] = (4 * width, width)
        shapes[f"{block}ffn_down.weight"] = (width, 4 * width)
    return shapes


def _bert(layers: int, width: int) -> Shapes:
    shapes: Shapes = {
        "token_embd.weight": (96, width),
        "token_types.weight": (2, width),
        "position_embd.weight": (64, width),
        "token_embd_norm.weight": (width,),
    }
    for layer in range(layers):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}{name}.weight"] = (width, width)
        shapes[f"{block}attn_output_norm.weight"] = shapes[f"{block}layer_output_norm.weight"] = (width,)
        shapes[f"{block}ffn_up.weight"], shapes[f"{block}ffn_down.weight"] = (4 * width, width), (width, 4 * width)
    return shapes


def _latent(layers: int, width: int, experts: int, *, split: bool = False) -> Shapes:
    """DeepSeek's: keys and values come from a small latent (by one matrix, or split by head); the first layer has no experts."""
    shapes: Shapes = {"token_embd.weight": (96, width), "output_norm.weight": (width,), "output.weight": (96, width)}
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes[f"{block}attn_q.weight"] = (width, width)
        shapes[f"{block}attn_kv_a_mqa.weight"] = (288, width)
        shapes[f"{block}attn_kv_a_norm.weight"] = (256,)
        if split:
            shapes[f"{block}attn_k_b.weight"], shapes[f"{block}attn_v_b.weight"] = (8, 256, 128), (8, 128, 256)
        else:
            shapes[f"{block}attn_kv_b.weight"] = (width, 256)
        shapes[f"{block}attn_output.weight"] = (width, width)
        if layer:
            shapes[f"{block}ffn_gate_inp.weight"] = (experts, width)
            for name in ("gate", "up", "down"):
                shapes[f"{block}ffn_{name}_exps.weight"] = (experts, 256, 256)
                shapes[f"{block}ffn_{name}_shexp.weight"] = (256, 256)
        else:
            for name in ("gate", "up", "down"):
                shapes[f"{block}ffn_{name}.weight"] = (256, 256)
    return shapes


def _t5(layers: int, width: int) -> Shapes:
    """An encoder and a decoder, whose blocks have names of their own."""
    shapes: Shapes = {"token_embd.weight": (96, width), "output.weight": (96, width), "enc.output_norm.weight": (width,)}
    for half in ("enc", "dec"):
        for layer in range(layers):
            block = f"{half}.blk.{layer}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_o", *(("cross_attn_q", "cross_attn_v") if half == "dec" else ())):
                shapes[f"{block}{name}.weight"] = (width, width)
            if not layer:
                shapes[f"{block}attn_rel_b.weight"] = (32, 8)
            shapes[f"{block}attn_norm.weight"] = (width,)
            shapes[f"{block}ffn_gate.weight"] = shapes[f"{block}ffn_up.weight"] = (2 * width, width)
            shapes[f"{block}ffn_down.weight"] = (width, 2 * width)
    return shapes


def _rwkv(layers: int, width: int) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (96, width), "token_embd_norm.weight": (width,), "output.weight": (96, width)}
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes[f"{block}time_mix_w1.weight"], shapes[f"{block}time_mix_w2.weight"] = (160, width), (5, width, 32)
        shapes[f"{block}time_mix_first.weight"] = (4, 64)
        shapes[f"{block}time_mix_decay_w1.weight"], shapes[f"{block}time_mix_decay_w2.weight"] = (64, width), (width, 64)
        shapes[f"{block}time_mix_lerp_fused.weight"] = (5, 1, 1, width)
        for name in ("key", "value", "receptance", "gate", "output"):
            shapes[f"{block}time_mix_{name}.weight"] = (width, width)
        shapes[f"{block}channel_mix_key.weight"], shapes[f"{block}channel_mix_value.weight"] = (
            (2 * width, width),
            (width, 2 * width),
        )
    return shapes


def _mamba(layers: int, width: int) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (96, width), "output_norm.weight": (width,)}
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes[f"{block}attn_norm.weight"] = (width,)
        shapes[f"{block}ssm_in.weight"], shapes[f"{block}ssm_out.weight"] = (4 * width, width), (width, 2 * width)
        shapes[f"{block}ssm_conv1d.weight"] = (2 * width, 4)
        shapes[f"{block}ssm_x.weight"], shapes[f"{block}ssm_dt.weight"] = (48, 2 * width), (2 * width, 16)
        shapes[f"{block}ssm_a"], shapes[f"{block}ssm_d"] = (2 * width, 16), (2 * width,)
    return shapes


def _gemma3n() -> Shapes:
    shapes = _decoder(4, 256, 128, 512, output=False)
    shapes["per_layer_token_embd.weight"] = (96, 4 * 256)
    shapes["per_layer_model_proj.weight"] = (4 * 256, 256)
    shapes["altup_proj.weight"] = (3, 256, 256)
    for layer in range(4):
        shapes[f"blk.{layer}.laurel_l.weight"] = (64, 256)
        shapes[f"blk.{layer}.altup_router.weight"] = (4, 256)
        shapes[f"blk.{layer}.inp_gate.weight"] = (256, 256)
    return shapes


_MOE = {"expert_count": u32(8), "expert_used_count": u32(2)}

MODELS: dict[str, Callable[[], Spec]] = {
    "llama of 8 layers": lambda: Spec("llama", _keys(8, 256, 8, 2, 512), _decoder(8, 256, 64, 512)),
    "llama of 32 layers, no shared heads": lambda: Spec("llama", _keys(32, 256, 8, 8, 512), _decoder(32, 256, 256, 512)),
    "llama of 22 layers, heads shared by 8": lambda: Spec("llama", _keys(22, 256, 8, 1, 512), _decoder(22, 256, 32, 512)),
    "llama of 80 layers, heads shared by 8": lambda: Spec("llama", _keys(80, 256, 8, 1, 256), _decoder(80, 256, 32, 256)),
    "llama of 80 layers, no shared heads": lambda: Spec("llama", _keys(80, 256, 8, 8, 256), _decoder(80, 256, 256, 256)),
    "qwen2 of 80 layers": lambda: Spec("qwen2", _keys(80, 256, 8, 1, 256), _decoder(80, 256, 32, 256, bias=True)),
    "mixtral": lambda: Spec("llama", {**_keys(8, 256, 8, 2, 256), **_MOE}, _decoder(8, 256, 64, 256, experts=8)),
    "mixtral of 1 file an expert": lambda: Spec("llama", {**_keys(4, 256, 8, 2, 256), **_MOE}, _split_experts(4, 256, 256)),
    "qwen2moe of 16 experts": lambda: Spec(
        "qwen2moe",
        {**_keys(12, 256, 8, 2, 256), "expert_count": u32(16), "expert_used_count": u32(4)},
        _decoder(12, 256, 64, 256, experts=16, shared_expert=512),
    ),
    "deepseek2": lambda: Spec(
        "deepseek2",
        _keys(
            9,
            256,
            8,
            1,
            256,
            expert_count=u32(6),
            expert_used_count=u32(2),
            leading_dense_block_count=u32(1),
            attention__kv_lora_rank=u32(256),
            attention__q_lora_rank=u32(128),
            expert_feed_forward_length=u32(256),
            expert_shared_count=u32(1),
            attention__key_length=u32(288),
            attention__value_length=u32(256),
            rope__dimension_count=u32(32),
            expert_weights_scale=f32(1.0),
        ),
        _latent(9, 256, 6),
    ),
    "falcon of 32 layers": lambda: Spec(
        "falcon",
        _keys(32, 256, 8, 1, 1024, attention__layer_norm_epsilon=f32(1e-5)),
        _fused(32, 256, output=True, positions=False),
    ),
    "gemma of 18 layers, tied": lambda: Spec("gemma", _keys(18, 256, 8, 1, 512), _decoder(18, 256, 32, 512, output=False)),
    "gemma3n": lambda: Spec(
        "gemma3n",
        _keys(4, 256, 8, 4, 512, attention__sliding_window=u32(64), embedding_length_per_layer_input=u32(256)),
        _gemma3n(),
    ),
    "qwen2 of 24 layers, tied": lambda: Spec(
        "qwen2", _keys(24, 256, 8, 2, 512), _decoder(24, 256, 64, 512, output=False, bias=True)
    ),
    "gpt2": lambda: Spec(
        "gpt2", _keys(12, 256, 8, 0, 1024, attention__layer_norm_epsilon=f32(1e-5)), _fused(12, 256, output=False, positions=True)
    ),
    "rows that 256 does not divide": lambda: Spec("llama", _keys(26, 320, 10, 10, 864), _decoder(26, 320, 320, 864)),
    "rows that 256 does not divide, tied": lambda: Spec(
        "qwen2", _keys(8, 224, 7, 1, 608), _decoder(8, 224, 32, 608, output=False)
    ),
    "rows that 32 does not divide": lambda: Spec("llama", _keys(4, 72, 6, 6, 180), _decoder(4, 72, 72, 180)),
    "bert": lambda: Spec("bert", _keys(6, 384, 12, 0, 1536, attention__layer_norm_epsilon=f32(1e-5)), _bert(6, 384)),
    "mamba": lambda: Spec(
        "mamba",
        _keys(
            6,
            256,
            0,
            0,
            0,
            ssm__conv_kernel=u32(4),
            ssm__inner_size=u32(512),
            ssm__state_size=u32(16),
            ssm__time_step_rank=u32(16),
        ),
        _mamba(6, 256),
    ),
    "heads by layer": lambda: Spec(
        "openelm",
        {**_keys(8, 256, 8), "attention.head_count_kv": array(U32_TYPE, [2] * 4 + [4] * 4)},
        _fused(8, 256, output=False, positions=False),
    ),
    "mixtral of 2 layers": lambda: Spec("llama", {**_keys(2, 256, 8, 2, 256), **_MOE}, _decoder(2, 256, 64, 256, experts=8)),
    "deepseek2, keys and values by head": lambda: Spec(
        "deepseek2",
        _keys(
            9,
            256,
            8,
            1,
            256,
            expert_count=u32(6),
            expert_used_count=u32(2),
            leading_dense_block_count=u32(1),
            attention__kv_lora_rank=u32(256),
            attention__q_lora_rank=u32(128),
            expert_feed_forward_length=u32(256),
            expert_shared_count=u32(1),
            attention__key_length=u32(288),
            attention__value_length=u32(256),
            rope__dimension_count=u32(32),
            expert_weights_scale=f32(1.0),
        ),
        _latent(9, 256, 6, split=True),
    ),
    "olmo of 80 layers": lambda: Spec(
        "olmo", _keys(80, 256, 8, 8, 256, attention__layer_norm_epsilon=f32(1e-5)), _decoder(80, 256, 256, 256)
    ),
    "deci of 80 layers": lambda: Spec("deci", _keys(80, 256, 8, 1, 256), _decoder(80, 256, 32, 256)),
    "jais2 of 68 layers": lambda: Spec(
        "jais2", _keys(68, 256, 8, 8, 256, attention__layer_norm_epsilon=f32(1e-5)), _decoder(68, 256, 256, 256, bias=True)
    ),
    "t5": lambda: Spec("t5", _keys(8, 256, 8, 0, 512, attention__relative_buckets_count=u32(32)), _t5(8, 256)),
    "rwkv6": lambda: Spec(
        "rwkv6",
        _keys(
            8,
            256,
            0,
            attention__layer_norm_epsilon=f32(1e-5),
            wkv__head_size=u32(64),
            time_mix_extra_dim=u32(32),
            time_decay_extra_dim=u32(64),
        ),
        _rwkv(8, 256),
    ),
}
