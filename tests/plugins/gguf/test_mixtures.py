"""The fixed mixtures against what ``llama-quantize`` said of the same models (``mixtures.json``; `record_mixtures` tells how)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from modelhub import Assignment, Extent, Metadata, Recipe, RecipeOptions, Table, Tensor, plugins
from modelhub_gguf.fields import U32, Field, array, string, u32
from modelhub_gguf.recipes.sizes import bits_per_weight

from tests.plugins.gguf.importance_files import measured, write_gguf
from tests.plugins.gguf.mixed_models import MODELS

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("mixtures.json").read_text())
LETTERS: dict[str, str] = RECORDED["letters"]
BASE = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "mxfp4_moe": "MXFP4",
    **{f"q{bits}_k_{size}": f"Q{bits}_K" for bits in (3, 4, 5) for size in "sml"},
    "q2_k_s": "Q2_K",
}  # fmt: skip
"""The type that a mixture is named for, where that is not its name."""
NUMBERS = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12,
    "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq4_nl": 25, "iq4_xs": 30,
    "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38, "q1_0": 40, "q2_0": 41, "q3_k": 12, "q4_k": 15, "q5_k": 17,
}  # fmt: skip
"""``enum llama_ftype``."""
MIXTURES = [name for name in NUMBERS if name not in ("q3_k", "q4_k", "q5_k")]


def recipe(name: str) -> Recipe:
    return {one.name: one for one in plugins.get().recipes if "gguf" in one.formats}[name]


def assign(name: str, table: Table, **options: Any) -> Assignment:
    found = recipe(name)
    assert found.assign
    return found.assign(table, RecipeOptions(**options))


def types_of(assignment: Assignment, table: Table) -> dict[str, str]:
    """What each tensor becomes."""
    return {t.name: assignment.choices[t.name].dtype if t.name in assignment.choices else t.dtype for t in table.tensors}


def recorded(label: str, mixture: str, table: Table) -> dict[str, str]:
    """What ``llama-quantize`` made of each tensor."""
    kept = set(RECORDED["kept"][label.partition("; ")[0]])
    groups: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for tensor in table.tensors:
        found = re.match(r"blk\.(\d+)\.", tensor.name)
        groups[re.sub(r"^blk\.\d+\.", "blk.*.", tensor.name)].append((int(found[1]) if found else 0, tensor))
    by_letter = {letter: dtype for dtype, letter in LETTERS.items()}
    expected = {}
    for group, members in groups.items():
        letters = RECORDED["types"][label][mixture].get(group, LETTERS[BASE.get(mixture, mixture.upper())])
        members.sort(key=lambda member: member[0])
        for place, (_, tensor) in enumerate(members):
            letter = letters if len(letters) == 1 else letters[place]
            expected[tensor.name] = tensor.dtype if group in kept else by_letter[letter]
    return expected


@pytest.mark.parametrize("label", RECORDED["types"])
def test_types_and_bits_per_weight_are_those_of_llama_quantize(label: str, tmp_path: Path) -> None:
    model, _, way = label.partition("; ")
    spec = MODELS[model]()
    table = spec.table()
    imatrix = str(write_gguf(tmp_path / "imatrix.gguf", measured(spec.shapes)))
    overrides = tuple(tuple(pair.split("=")) for pair in way.split()) if "=" in way else ()
    for mixture in MIXTURES:
        # What it says of this mixture's types does not depend on there being importance weights; ours asks for them.
        weighed = way == "with importance" or mixture == "q2_k_s"
        if overrides and mixture in ("f32", "f16", "bf16"):
            continue  # llama-quantize takes no notice of --tensor-type there; we do
        if mixture not in RECORDED["types"][label]:
            with pytest.raises(ValueError, match="nothing takes the place of Q1_0"):
                assign(mixture, table, overrides=overrides)
            continue
        found = assign(mixture, table, importance=imatrix if weighed else "", overrides=overrides)
        assert types_of(found, table) == recorded(label, mixture, table), mixture
        if not way:
            assert f"{bits_per_weight(table, found.choices):.2f}" == f"{RECORDED['bits'][model][mixture]:.2f}", mixture
        assert found.native["general.file_type"] == u32(NUMBERS[mixture])
        assert found.native["general.quantization_version"] == u32(2)


def test_every_mixture_has_its_number_and_short_names_mean_the_medium_one() -> None:
    table = MODELS["llama of 32 layers, no shared heads"]().table()
    for name in NUMBERS:
        if name != "q2_k_s":
            assert assign(name, table).native["general.file_type"].value == NUMBERS[name], name
    for short in ("q3_k", "q4_k", "q5_k"):
        assert types_of(assign(short, table), table) == types_of(assign(f"{short}_m", table), table)


def test_the_order_of_the_table_does_not_matter() -> None:
    table = MODELS["llama of 32 layers, no shared heads"]().table()
    mixed = Table(tuple(sorted(table.tensors, key=lambda tensor: tensor.name[::-1])), table.metadata)
    for name in ("q4_k_m", "q3_k_m", "q4_k_s"):
        assert types_of(assign(name, mixed), table) == types_of(assign(name, table), table)


def test_fallbacks_are_said() -> None:
    table = MODELS["rows that 256 does not divide"]().table()
    choices = assign("q4_k_m", table).choices
    assert choices["blk.3.attn_q.weight"] == ("Q5_0", None, "rows of 320 do not divide by 256: Q5_0 in place of Q4_K")
    assert choices["blk.0.ffn_down.weight"][2] == "rows of 864 do not divide by 256: Q8_0 in place of Q6_K"
    assert choices["output.weight"][2] == "rows of 320 do not divide by 256: Q8_0 in place of Q6_K"
    assert all(choice.fallback for choice in choices.values())
    assert not any(choice.fallback for choice in assign("q8_0", table).choices.values())
    odd = assign("q4_0", MODELS["rows that 32 does not divide"]().table()).choices
    assert odd["blk.0.attn_q.weight"] == ("F16", None, "rows of 72 do not divide by 32: F16 in place of Q4_0")
    whole = MODELS["llama of 8 layers"]().table()
    assert not any(choice.fallback for name in NUMBERS if name != "q2_k_s" for choice in assign(name, whole).choices.values())


def test_plain_types_leave_vectors_as_they_are() -> None:
    table = MODELS["bert"]().table("BF16")
    found = types_of(assign("f16", table), table)
    assert found["blk.0.attn_q.weight"] == found["token_embd.weight"] == "F16"
    assert found["blk.0.attn_output_norm.weight"] == found["token_types.weight"] == "F32"
    assert {*types_of(assign("f32", table), table).values()} == {"F32"}


def test_overrides_hold_for_plain_types_too() -> None:
    table = MODELS["llama of 8 layers"]().table()
    choices = assign("bf16", table, overrides=((r"^output\.weight$", "Q8_0"), (r"ffn_.*\.weight", "q6_K"))).choices
    assert choices["output.weight"].dtype == "Q8_0"
    assert choices["blk.0.ffn_gate.weight"].dtype == "Q6_K"
    assert choices["blk.0.attn_output.weight"].dtype == "BF16"


def test_the_first_pattern_that_matches_wins_and_idle_ones_are_said() -> None:
    table = MODELS["llama of 8 layers"]().table()
    pairs = ((r"blk\.0\.", "q8_0"), (r"attn_v", "q5_k"), (r"blk\.0\.attn_v", "q2_k"), ("_norm", "f16"))
    found = assign("q4_k_m", table, overrides=pairs)
    assert found.choices["blk.0.attn_v.weight"].dtype == "Q8_0"
    assert found.choices["blk.1.attn_v.weight"].dtype == "Q5_K"
    assert "blk.0.attn_norm.weight" not in found.choices
    assert [note for note in found.notes if "blk\\\\.0\\\\.attn_v" in note]
    assert [note for note in found.notes if "'_norm'" in note]
    assert len(found.notes) == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("attn_(", "q8_0"),), r"'attn_\(' is not a regular expression"),
        ((("attn_v", "q4_k_m"),), "'q4_k_m' is not the type of a tensor; there are F32, F16, BF16, Q4_0"),
        ((("attn_v", "i32"),), "'i32' is not the type"),
        ((("attn_v", "q8_k"),), "'q8_k' is not the type"),
    ],
)
def test_overrides_that_make_no_sense(pairs: tuple[tuple[str, str], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign("q4_k_m", MODELS["llama of 8 layers"]().table(), overrides=pairs)


def test_a_fixed_mixture_takes_no_target() -> None:
    with pytest.raises(ValueError, match="gguf:auto"):
        assign("q4_k_m", MODELS["llama of 8 layers"]().table(), target_bits=4.5)


def test_what_is_quantized_already_is_said() -> None:
    table = MODELS["llama of 8 layers"]().table()
    coarse = Table(
        tuple(t._replace(dtype="Q4_0") if t.name == "blk.2.attn_q.weight" else t for t in table.tensors), table.metadata
    )
    (note,) = assign("q8_0", coarse).notes
    assert note.startswith("blk.2.attn_q.weight: quantized already")
    assert not assign("q4_0", coarse).notes


def test_tensors_that_are_no_weights_stay() -> None:
    value = Extent("/model.gguf", 0, 1 << 20)
    odd = [
        Tensor("blk.0.attn_q.lora_a", "F32", (256, 256), value),
        Tensor("blk.0.ffn_gate_tid2eid.weight", "I32", (256, 256), value),
        Tensor("blk.0.attn_k.weight", "I32", (256, 256), value),
        Tensor("blk.0.attn_v.weight", "F32", (1, 256), value),
        Tensor("blk.0.attn_output.weight", "F32", (256, 256), None, unsupported="sparse tensor"),
        Tensor("blk.0.ffn_up.weight", "F32", (), value),
    ]
    assert not assign("q4_0", Table(tuple(odd))).choices
    assert list(assign("q4_0", Table((odd[3]._replace(shape=(2, 1, 256)),))).choices) == ["blk.0.attn_v.weight"]


def test_a_table_without_keys_counts_the_layers_of_its_names() -> None:
    with_keys = MODELS["llama of 32 layers, no shared heads"]().table()
    without = Table(with_keys.tensors)
    assert types_of(assign("q4_k_m", without), without) == types_of(assign("q4_k_m", with_keys), with_keys)


def test_counts_that_were_left_in_their_file(tmp_path: Path) -> None:
    """A model of more layers than a header makes Python values of."""
    spec = MODELS["llama of 8 layers"]()
    path = tmp_path / "counts"
    path.write_bytes(b"xx" + (4).to_bytes(4, "little") + (2).to_bytes(8, "little") + (2).to_bytes(4, "little") * 2)
    keys = {**spec.fields, "llama.attention.head_count_kv": Field(9, Extent(str(path), 2, 20), U32)}
    table = Table(spec.table().tensors, Metadata(native=keys))
    assert types_of(assign("q2_k", table), table) == types_of(assign("q2_k", spec.table()), table)
    path.write_bytes(b"xx" + (8).to_bytes(4, "little") + bytes(16))
    with pytest.raises(Exception, match="head_count_kv at offset 2 is not an array of counts"):
        assign("q2_k", table)


@pytest.mark.parametrize("field", [string("many"), array(U32, ["x"]), Field(5, -1)])
def test_counts_that_make_no_sense(field: Field) -> None:
    spec = MODELS["llama of 8 layers"]()
    table = Table(spec.table().tensors, Metadata(native={**spec.fields, "llama.block_count": field}))
    with pytest.raises(ValueError, match=r"llama\.block_count is .* a count was expected"):
        assign("q4_k_m", table)


def test_experts_in_a_layer_that_is_not_there() -> None:
    spec = MODELS["mixtral"]()
    table = Table(spec.table().tensors, Metadata(native={**spec.fields, "llama.block_count": u32(4)}))
    with pytest.raises(ValueError, match=r"blk\.4\.ffn_down_exps\.weight: its name says layer 4, the model has 4"):
        assign("q4_k_m", table)
