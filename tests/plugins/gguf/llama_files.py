"""A small llama as gguf-py writes it: every kind of key, a few tensors, random blocks. It is read and copied, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from modelhub_gguf.types import BY_NAME

WORDS = [f"token{number}" for number in range(400)]


def model(path: Path, *, kinds: tuple[str, ...] = ("Q4_K", "Q6_K"), blocks: int = 4, file_type: int = 15, **options: Any) -> Path:
    """A small llama with random weights, written by gguf-py."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("A model")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "de"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Base")
    writer.add_base_model_organization(0, "Org")
    writer.add_base_model_repo_url(0, "https://huggingface.co/org/base")
    writer.add_context_length(4096)
    writer.add_embedding_length(256)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(512)
    writer.add_head_count(8)
    writer.add_head_count_kv([2] * blocks)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * 400)
    writer.add_token_merges(["a b"] * 300)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, kind, rows in _tensors(blocks, kinds):
        if kind == "F32":
            writer.add_tensor(name, random.standard_normal(rows).astype(np.float32))
        else:
            quantized = gguf.GGMLQuantizationType[kind]
            data = np.frombuffer(random.bytes(rows * BY_NAME[kind].nbytes), np.uint8).reshape(rows, -1)
            writer.add_tensor(name, data.copy(), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(blocks: int, kinds: tuple[str, ...]) -> list[tuple[str, str, int]]:
    names = [("token_embd.weight", kinds[-1], 400), ("output_norm.weight", "F32", 256)]
    for number in range(blocks):
        names += [
            (f"blk.{number}.attn_norm.weight", "F32", 256),
            (f"blk.{number}.attn_q.weight", kinds[0], 256),
            (f"blk.{number}.ffn_down.weight", kinds[0], 256),
        ]
    return names
