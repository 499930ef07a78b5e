"""What a mixture needs to know of a model: a few of its keys, the roles of its tensors, and their order. No dtype is chosen here.

Facts: llama.cpp ``src/llama-quant.cpp`` (``tensor_get_category``, ``tensor_allows_quantization``,
``init_quantize_state_counters``), ``src/llama-model-loader.h`` (``weight_name_comparer``), ``src/llama-hparams.cpp`` (``n_gqa``)
and, for what is called a 70B model, ``src/models/*.cpp`` (``LLM_TYPE_70B``). Names are GGUF's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelhub import Extent, File, InvalidFile, Table, Tensor, dtypes

OUTPUT = "output.weight"
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_ROLES = (
    ("attn_qkv.weight", "values"),
    ("attn_kv_b.weight", "values"),
    ("attn_v.weight", "values"),
    ("attn_k.weight", "keys"),
    ("attn_q.weight", "queries"),
    ("attn_output.weight", "attention output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
"""Parts of names, and the role of a tensor whose name has one; the first that fits."""

_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
"""Parts of names of matrices that are small, or that routing and positions rest on: they stay as they are."""

_KEPT_GLM5_NEXT = (
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight",
    "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip

_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")

_LAYER = re.compile(r"blk\.\s*([+-]?[0-9]{1,9})")
_LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True, slots=True)
class Model:
    """``layers``: its blocks. ``sharing``: query heads that share a key head (0: not known). ``experts``: of a layer (0: none).
    ``values``: how many tensors hold attention's values, alone or fused. ``tied``: the token embeddings are its output too.
    ``heads_of_70b``: a large model whose few value heads are worth more bits. ``weighed``: an importance matrix is given."""

    architecture: str
    layers: int
    sharing: int
    experts: int
    values: int
    tied: bool
    heads_of_70b: bool
    weighed: bool


def model_of(table: Table, *, weighed: bool) -> Model:
    """The facts of a table with GGUF names and keys. ValueError names a key whose value makes no sense."""
    keys = table.metadata.native
    architecture = _text(keys, "general.architecture")
    tensors = table.logical
    layers = _number(keys, f"{architecture}.block_count")
    if not layers:  # a table without keys, of plain tensors: as many layers as its names count
        layers = max((layer_of(tensor.name) for tensor in tensors), default=-1) + 1
    experts = _number(keys, f"{architecture}.expert_count")
    if architecture in ("hunyuan_vl", "hunyuan-dense") and experts <= 1:
        experts = 0
    heads = _number(keys, f"{architecture}.attention.head_count")
    shared = _number(keys, f"{architecture}.attention.head_count_kv", heads)
    main = layers - _number(keys, f"{architecture}.nextn_predict_layers")
    big = _LAYERS_OF_70B.get(architecture) == main
    if architecture in ("llama", "llama-embed"):
        big = big and experts != 8 and heads != shared
    return Model(
        architecture=architecture,
        layers=layers,
        sharing=heads // shared if shared else 0,
        experts=experts,
        values=sum(role_of(tensor.name) == "values" for tensor in tensors),
        tied=all(tensor.name != OUTPUT for tensor in tensors),
        heads_of_70b=big,
        weighed=weighed,
    )


def role_of(name: str) -> str:
    """What a tensor does, as far as mixtures care: output, embeddings, values, keys, queries, attention output, up, gate, down,
    or ""."""
    if name == OUTPUT:
        return "output"
    if name in EMBEDDINGS:
        return "embeddings"
    return next((role for part, role in _ROLES if part in name), "")


def layer_of(name: str) -> int:
    """The number of the block that a name stands in, or -1."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def can_change(tensor: Tensor, architecture: str) -> bool:
    """Whether a mixture may give a tensor another dtype: a matrix (or a stack of them) of floats that is none of those which
    are kept."""
    name, dtype = tensor.name, dtypes.find(tensor.dtype)
    if dtype is None or dtype.kind not in ("float", "quantized") or tensor.unsupported or tensor.value is None:
        return False
    if dimensions(tensor.shape) < 2 or not name.endswith("weight") or name in _KEPT_WHOLE:
        return False
    if architecture == "glm5-next" and any(part in name for part in _KEPT_GLM5_NEXT):
        return False
    return not any(part in name for part in _KEPT)


def dimensions(shape: Sequence[int]) -> int:
    """Dimensions without leading ones, which ggml does not count."""
    return next((len(shape) - place for place, side in enumerate(shape) if side > 1), 1)


def in_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as llama.cpp goes through them: those outside of blocks, then block by block, by name. Which of a kind come first
    decides what they get."""
    return sorted(tensors, key=lambda tensor: (layer_of(tensor.name), tensor.name.encode("utf-8", "surrogateescape")))


def _text(keys: Mapping[str, Any], key: str) -> str:
    value = getattr(keys.get(key), "value", "")
    return value if isinstance(value, str) else ""


def _number(keys: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A count; of an array, the first layer's."""
    field = keys.get(key)
    if field is None:
        return default
    value = field.value
    if isinstance(value, Extent):
        value = _first_number(value, key)
    elif isinstance(value, list):
        value = value[0] if value else default
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} is {value!r:.40}: a count was expected")
    return int(value)


def _first_number(extent: Extent, key: str) -> int:
    """The first item of an array that was left in its file: item type (u32), length (u64), items."""
    with File(extent.file) as file:
        head = file.read(extent.offset, min(extent.nbytes, 20))
    size = {4: 4, 5: 4, 10: 8, 11: 8}.get(int.from_bytes(head[:4], "little"))
    if size is None or len(head) < 12 + size:
        raise InvalidFile(f"{extent.file}: {key} at offset {extent.offset} is not an array of counts")
    return int.from_bytes(head[12 : 12 + size], "little", signed=True)
