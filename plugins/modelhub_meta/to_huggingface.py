"""Meta's checkpoints as Hugging Face directories: a table derived from the parts', with the configuration that ``params.json``
and the shapes say. Reads no weights.

Names, the order of the heads' rows and the settings are those of transformers' ``convert_llama_weights_to_hf.py`` (and
``convert_mistral_weights_to_hf.py``). How long a text may be stands nowhere in the files; it follows from the model's other
settings.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from modelhub import Conversion, File, InvalidFile, Metadata, ModelhubError, Table, Tensor, UnsupportedFile, ops

from modelhub_meta import tiktoken
from modelhub_meta.layout import CHECKLIST, PARAMS, TOKENIZER, Params, read_params

NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)\.weight", re.ASCII)
_LLAMA3 = tiktoken.RANKS + tiktoken.SPECIAL
"""Tokens of all of Llama 3."""
_MAX_TOKENIZER, _MAX_TEXT = 64 << 20, 4 << 20
_PIECES = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
    "add_eos_token": False,
}  # fmt: skip
"""What ``AutoTokenizer`` needs to know besides a SentencePiece model."""


def derive(sources: Sequence[Table], options: Mapping[str, str]) -> Table:
    """The Hugging Face table. `UnsupportedFile` names a tensor that has no place there, `InvalidFile` what contradicts
    ``params.json``."""
    table = sources[0]
    path = next((path for path in table.files if os.path.basename(path) == PARAMS), "")
    if not path:
        raise ModelhubError(f"there is no {PARAMS} among the files")
    with File(path) as file:
        params = read_params(file)
    if "moe" in params.raw:
        raise UnsupportedFile(
            f"{PARAMS} says a mixture of experts, which has no way from here: dense models have one",
            "take the model from where it is offered as a Hugging Face directory",
        )
    tensors = [_renamed(tensor, params) for tensor in table.logical if tensor.name != "rope.freqs"]
    documents = {"config.json": _json(_config(params, tensors)), **_beside(table.files, os.path.dirname(path), params)}
    notes = (
        ()
        if "tokenizer_config.json" in documents
        else (f"there is no {TOKENIZER}, here or above: the directory has no tokenizer",)
    )
    metadata = Metadata(values=table.metadata.values)
    return Table(tuple(tensors), metadata, table.files, documents, notes)


def _renamed(tensor: Tensor, params: Params) -> Tensor:
    match = _LAYER.fullmatch(tensor.name)
    base = NAMES.get(match[2]) if match else ENDS.get(tensor.name.removesuffix(".weight"))
    if base is None:
        raise UnsupportedFile(
            f"tensor {tensor.name[:200]!r} {list(tensor.shape)} has no place in a Llama: is the model of another kind?",
            "--to safetensors keeps all tensors under their names",
        )
    if match is None:
        return tensor._replace(name=f"{base}.weight")
    heads = {"attention.wq": params.heads, "attention.wk": params.kv_heads}.get(match[2], 0)
    return _halves_first(tensor, heads)._replace(name=f"model.layers.{int(match[1])}.{base}.weight")


def _halves_first(tensor: Tensor, heads: int) -> Tensor:
    """Meta rotates the even and odd elements of a head, transformers its two halves: the even rows first, then the odd ones."""
    if not heads or tensor.value is None:
        return tensor
    rows = tensor.shape[0] if tensor.shape else 0
    if not rows or rows % (2 * heads):
        raise InvalidFile(f"tensor {tensor.name} has {rows} rows: those are not {heads} heads, as {PARAMS} says")
    node = ops.permute(ops.typed(tensor.value, tensor.dtype, tensor.shape), (heads, rows // heads // 2, 2), (0, 2, 1))
    return tensor._replace(value=node)


def _config(params: Params, tensors: Sequence[Tensor]) -> dict[str, Any]:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    layer = "model.layers.0"
    for name in ("model.embed_tokens.weight", f"{layer}.mlp.gate_proj.weight", f"{layer}.self_attn.k_proj.weight"):
        if len(shapes.get(name, ())) != 2 or shapes[name][1] != params.dim:
            raise InvalidFile(f"{name} is {list(shapes.get(name, ()))}: a matrix of {params.dim} columns was expected")
    _check_layers(params, shapes)
    if shapes[f"{layer}.self_attn.k_proj.weight"][0] != params.kv_heads * params.head_dim:
        raise InvalidFile(
            f"{PARAMS} says {params.kv_heads} heads of {params.head_dim} for keys; there are "
            f"{shapes[f'{layer}.self_attn.k_proj.weight'][0]} rows"
        )
    vocabulary = shapes["model.embed_tokens.weight"][0]
    mistral = "hidden_dim" in params.raw  # Llama's says how to work it out (multiple_of, ffn_dim_multiplier)
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        "hidden_size": params.dim,
        "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"][0],
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "num_key_value_heads": params.kv_heads,
        "head_dim": params.head_dim,
        "hidden_act": "silu",
        "vocab_size": vocabulary,
        "max_position_embeddings": _context(params, vocabulary, mistral),
        "rms_norm_eps": params.norm_eps,
        "rope_theta": params.number("rope_theta", 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "bos_token_id": tiktoken.RANKS if vocabulary == _LLAMA3 else 1,
        "eos_token_id": tiktoken.RANKS + 1 if vocabulary == _LLAMA3 else 2,
        "torch_dtype": _dtype(tensors),
    }
    if mistral:
        window = params.raw.get("sliding_window")
        config["sliding_window"] = window if type(window) is int else None
    if params.raw.get("use_scaled_rope") is True:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": params.number("rope_scaling_factor", 32.0 if params.dim < 4096 else 8.0),  # 3.2's small models: 32
            "low_freq_factor": 1.0,
            "high_freq_factor": params.number("rope_high_freq_factor", 4.0),
            "original_max_position_embeddings": 8192,
        }
    return config


def _check_layers(params: Params, shapes: Mapping[str, Sequence[int]]) -> None:
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    if layers != set(range(params.layers)):
        odd = min(layers ^ set(range(params.layers)))
        raise InvalidFile(
            f"{PARAMS} counts {params.layers} layers; of layer {odd} there {'are' if odd in layers else 'are no'} tensors"
        )


def _context(params: Params, vocabulary: int, mistral: bool) -> int:
    """How long a text may be, by the version (``CONTEXT_LENGTH_FOR_VERSION`` in the converter), which is told by what changed
    with it: the epsilon with Llama 2, the rotary base with Code Llama, the tokens with Llama 3, the scaling with 3.1."""
    said = params.raw.get("max_seq_len")
    if type(said) is int and said > 0:
        return said
    if mistral:
        return 32768
    if params.raw.get("use_scaled_rope") is True:
        return 131072
    if vocabulary == _LLAMA3:
        return 8192
    if params.number("rope_theta", 10000.0) == 1e6:
        return 16384
    return 2048 if params.norm_eps == 1e-6 else 4096


def _dtype(tensors: Sequence[Tensor]) -> str:
    count: Counter[str] = Counter()
    for tensor in tensors:
        count[tensor.dtype] += prod(tensor.shape)
    return TORCH.get(count.most_common(1)[0][0], "float32")


# --- documents ----------------------------------------------------------------------------------------------------


def _beside(files: Sequence[str], directory: str, params: Params) -> dict[str, bytes]:
    """The tokenizer, which Meta ships one directory above the weights, and the texts beside them."""
    found: dict[str, bytes] = {}
    for path in files:
        name = os.path.basename(path)
        if name not in (PARAMS, CHECKLIST, TOKENIZER) and not name.endswith(".pth"):
            found[name] = _content(path, _MAX_TEXT)
    for path in (os.path.join(directory, TOKENIZER), os.path.join(os.path.dirname(directory), TOKENIZER)):
        if os.path.isfile(path):
            model = _content(path, _MAX_TOKENIZER)
            if tiktoken.is_ranks(model):
                made = tiktoken.documents(model, since_3_1=params.raw.get("use_scaled_rope") is True)
                found.update({name: _json(value) for name, value in made.items()})
            else:
                found.update({TOKENIZER: model, "tokenizer_config.json": _json(_PIECES)})
            break
    return found


def _content(path: str, limit: int) -> bytes:
    with File(path) as file:
        if file.size > limit:
            raise InvalidFile(f"{file.name} is {file.size} bytes long; no such document needs more than {limit}")
        return file.read(0, file.size)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


CONVERSION = Conversion(name="meta-to-huggingface", source="meta", target="huggingface", derive=derive)
