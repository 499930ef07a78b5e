"""What a header says of any model, against gguf-py's own reading of names, sizes and cards."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import Inline, Tensor
from modelhub_gguf.architectures.card import front_matter
from modelhub_gguf.architectures.general import general
from modelhub_gguf.architectures.model_id import parts_of, size_label, title
from modelhub_gguf.documents import Documents

IDS = (
    "meta-llama/Llama-3.2-1B-Instruct", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "mistralai/Mixtral-8x7B-v0.1", "bloom-7b1-petals",
    "openai-community/gpt2", "Qwen2.5-0.5B", "phi-3-mini-128k-instruct", "nvidia/Llama-3_1-Nemotron-51B-Instruct", "a b c",
    "BAAI/bge-small-en-v1.5", "all-MiniLM-L6-v2", "Mistral-7B-Instruct-v0.3-iter2", "x", "-", "./model", "smol-llama-101M-GQA",
    "Delta-Vector/Holland-4B-V1", "bge-large-zh-v1.5-Q4_K-fp16", "google/gemma-2-2b-it", "deepseek-coder-1.3B-kexer",
)  # fmt: skip
WORD = st.sampled_from(
    ["llama", "Qwen", "v1.0", "7b", "7b1", "8x7B", "128k", "chat", "Instruct", "mini", "xl", "q4_0", "BF16", "3", "it", "A3B"]
)


def same(model_id: str, parameters: int) -> None:
    name, organization, basename, finetune, version, label = gguf.Metadata.get_model_id_components(model_id, parameters)
    wanted = tuple(part or "" for part in (name, organization, basename, finetune, version, label))
    assert tuple(parts_of(model_id, parameters)) == wanted
    assert title(name or "") == gguf.Metadata.id_to_title(name or "")


@pytest.mark.parametrize("parameters", [0, 1_100_000_000, 7_000_000_000, 128_000, 46_000_000_000])
@pytest.mark.parametrize("model_id", IDS)
def test_names_are_taken_apart_as_gguf_py_does(model_id: str, parameters: int) -> None:
    same(model_id, parameters)


@settings(max_examples=200, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=6), parameters=st.sampled_from([0, 100_000, 7 * 10**9]))
def test_any_name_is(words: list[str], parameters: int) -> None:
    same("-".join(words), parameters)


@given(total=st.integers(1, 10**13), expert=st.integers(0, 10**11), experts=st.sampled_from([0, 8, 64]))
def test_sizes_are_rounded_as_gguf_py_does(total: int, expert: int, experts: int) -> None:
    assert size_label(total, total, expert, experts) == gguf.size_label(total, total, expert, experts)


CARD = """---
license: other
license_name: llama3   # what Meta calls it
license_link: "https://example.com/LICENSE"
language:
- en
- no
tags: [text-generation, 'smol']
pipeline_tag: text-generation
base_model:
  - meta-llama/Llama-3.2-1B
  - https://huggingface.co/acme/Zeta-2B-v2
model_creator: Ada
widget:
- text: "hello: there"
  example: |
    more
---
# A model
tags: none of these
"""


def test_the_card_the_directory_and_the_sampling_defaults_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "Zeta-3-0.1K-Chat"
    path.mkdir()
    (path / "README.md").write_text(CARD)
    (path / "config.json").write_text("{}")
    (path / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 20, "do_sample": True, "top_p": None}))
    documents = Documents([str(path / name) for name in ("README.md", "config.json", "generation_config.json")])
    tensors = [Tensor("token_embd.weight", "F32", (10, 10), Inline(b"\0" * 400))]
    found = {name.removeprefix("general."): field.value for name, field in general(documents, {}, tensors).items()}
    assert found == {
        "sampling.temp": 0.5, "sampling.top_k": 20, "name": "Zeta 3 0.1K Chat", "author": "Ada", "basename": "Zeta-3",
        "finetune": "Chat", "size_label": "0.1K", "license": "other", "license.name": "llama3",
        "license.link": "https://example.com/LICENSE", "base_model.count": 2, "base_model.0.name": "Llama 3.2 1B",
        "base_model.0.organization": "Meta Llama", "base_model.0.repo_url":
        "https://huggingface.co/meta-llama/Llama-3.2-1B", "base_model.1.name": "Zeta 2B v2", "base_model.1.version": "v2",
        "base_model.1.organization": "Acme", "base_model.1.repo_url": "https://huggingface.co/acme/Zeta-2B-v2",
        "tags": ["text-generation", "smol", "text-generation"], "languages": ["en", "no"],
    }  # fmt: skip


@given(text=st.text(alphabet="-: \n[]'\"#abc|>", max_size=200))
def test_no_card_fails(text: str) -> None:
    assert isinstance(front_matter(f"---\n{text}"), dict)
