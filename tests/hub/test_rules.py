"""Rules as they are written: what they may say, what is wrong with them in words, and where their outputs go."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelhub import plugins
from modelhub.errors import ConversionError, UsageError
from modelhub.rules.output import Place, check_output, output_of, parse
from modelhub.rules.read import Rule, check, load, target_of


def rules(*tables: dict[str, Any]) -> tuple[Rule, ...]:
    return load({"rules": list(tables)}, "/c.toml")


def rule(**keys: Any) -> Rule:
    (found,) = rules({"where": ["*"], **keys})
    return found


# --- what they say ------------------------------------------------------------------------------------------------


def test_rules_as_the_owner_writes_them() -> None:
    first, second, third = rules(
        {
            "name": "pickles become safetensors",
            "where": ["format=pytorch", "size<50GB"],
            "convert": "safetensors",
            "output": "{root}/.converted/{dir}/{stem}{ext}",
            "max_shard_size": "5GB",
            "skip_unsupported": True,
        },
        {"where": ["format=huggingface", "architecture=llama"], "convert": "GGUF:Q4_K_M", "priority": 5, "enabled": False},
        {"where": ["*"], "verify": "structure"},
    )
    assert (first.number, first.name, first.do, first.target) == (1, "pickles become safetensors", "convert", "safetensors")
    assert (first.max_shard_size, first.skip_unsupported, first.enabled) == (5 * 10**9, True, True)
    assert (second.name, second.target, second.priority, second.enabled) == (
        "rule 2: convert to gguf:q4_k_m",
        "gguf:q4_k_m",
        5,
        False,
    )
    assert (third.name, third.converts, third.output) == ("rule 3: verify structure", False, None)


def test_no_rules_are_no_error() -> None:
    assert load({}) == ()
    assert load({"rules": [], "watch": {"settle": 1}}) == ()


def test_what_a_rule_does_tells_it_from_others_and_not_its_name_or_condition() -> None:
    one = rule(convert="safetensors", output="{stem}{ext}")
    assert one.action == rule(convert="SAFETENSORS", output="{stem}{ext}", name="x", priority=9).action
    assert one.action == rules({"where": ["size>1GB"], "convert": "safetensors", "output": "{stem}{ext}"})[0].action
    others = [
        rule(convert="safetensors"),
        rule(convert="safetensors", output="a/{stem}{ext}"),
        rule(convert="safetensors:bf16", output="{stem}{ext}"),
        rule(convert="safetensors", output="{stem}{ext}", max_shard_size=10**9),
        rule(convert="safetensors", output="{stem}{ext}", skip_unsupported=True),
        rule(quantize="bf16"),
        rule(verify="all"),
    ]
    assert len({one.action, *(other.action for other in others)}) == 1 + len(others)
    assert all(len(other.action) == 16 for other in others)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("convert", r"^/c.toml, rule 1: it is not a table; begin each rule with \[\[rules\]\]"),
        ({}, r"^/c.toml, rule 1: it does not say what to do; give one of convert"),
        ({"verify": "all"}, r"^/c.toml, rule 1, where: it is not there; say which checkpoints"),
        ({"where": "*", "verify": "all"}, r'^/c.toml, rule 1, where: "\*" is no list of expressions; give one, like \["format='),
        ({"where": [], "verify": "all"}, r"rule 1, where: \[\] is no list"),
        ({"where": ["size"], "verify": "all"}, r"^/c.toml, rule 1, where: 'size' is not an expression: field op value; like"),
        ({"where": ["sise>1GB"], "verify": "all"}, r"^/c.toml, rule 1, where: 'sise' is not a field; did you mean size\?"),
        ({"where": ["size>lots"], "verify": "all"}, r"where: 'lots' is no value for size"),
        ({"where": ["state=invalid"], "verify": "all"}, r"where: 'state=invalid' holds for nothing that a rule looks at"),
        ({"where": ["*"], "verify": "some"}, r'verify: there is no level "some"; levels: structure, safety, digest'),
        ({"where": ["*"], "verify": 3}, r"verify: there is no level 3"),
        ({"where": ["*"], "convert": "a b"}, r'convert: "a b" is no format; like "safetensors"'),
        ({"where": ["*"], "convert": "gguf:"}, r'convert: "gguf:" is no format'),
        ({"where": ["*"], "quantize": "gguf:q8_0"}, r'quantize: "gguf:q8_0" is no recipe; convert = "gguf:q8_0" says'),
        ({"where": ["*"], "convert": "x", "verify": "all"}, r"rule 1: both convert and verify are there; give one of"),
        ({"where": ["*"], "convrt": "x"}, r"^/c.toml, rule 1, convrt is not known; did you mean convert\?"),
        (
            {"name": "n", "where": ["*"], "verify": "all", "output": "x"},
            r"^/c.toml, rule 1 \('n'\), output: a verification writes",
        ),
        (
            {"where": ["*"], "convert": "x", "output": "{rot}/a"},
            r"output: there is no field {rot}; did you mean {root}\? fields:",
        ),
        ({"where": ["*"], "convert": "x", "output": "{root"}, r"output: its braces do not match"),
        ({"where": ["*"], "convert": "x", "output": "a}b"}, r"output: its braces do not match"),
        ({"where": ["*"], "convert": "x", "output": "{}"}, r"output: there is no field {};"),
        ({"where": ["*"], "convert": "x", "output": "{name.__class__}"}, r"output: there is no field {name.__class__}"),
        ({"where": ["*"], "convert": "x", "output": "{name!r}"}, r"output: there is no field {name!r}"),
        ({"where": ["*"], "convert": "x", "output": " "}, r"output: it is no path"),
        ({"where": ["*"], "convert": "x", "output": 3}, r"output: 3 is no path"),
        ({"where": ["*"], "convert": "x", "output": "{stem}.{recipe}{ext}"}, r"output: {recipe} stands for nothing"),
        ({"where": ["*"], "convert": "x", "max_shard_size": "big"}, r'rule 1, max_shard_size is "big", which is no size'),
        ({"where": ["*"], "convert": "x", "priority": "high"}, r'priority: "high" is no priority; give a whole number'),
        ({"where": ["*"], "convert": "x", "enabled": "no"}, r'enabled: "no" is neither true nor false'),
        ({"where": ["*"], "convert": "x", "name": ""}, r'name: "" is no name'),
    ],
)
def test_what_is_wrong_is_said_with_its_rule_and_key(table: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rules(table)


def test_names_are_unique() -> None:
    one = {"name": "one", "where": ["*"], "verify": "all"}
    with pytest.raises(UsageError, match=r"^/c.toml: rules 1 and 3 are both called 'one'; give one another name"):
        rules(one, {"where": ["*"], "verify": "all"}, {**one, "verify": "digest"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"convert": "safetensers"},
            r"rule 1 \('rule 1: [^']*'\), convert: there is no format called 'safetensers'; formats that",
        ),
        ({"convert": "safetensors:q99"}, r"convert: safetensors has no recipe called 'q99'; it has: "),
        ({"quantize": "q99"}, r"quantize: there is no recipe called 'q99'; there are: "),
        (
            {"convert": "safetensors", "output": "{stem}.gguf"},
            r"output: what it makes would not be called as safetensors is, \*.safetensors; end",
        ),
        ({"convert": "safetensors", "output": "{dir}/{stem}"}, r"output: what it makes would not be called as safetensors"),
    ],
)
def test_what_no_plugin_can_do_is_said(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check([rule(**keys)], plugins.get(), "/c.toml")


def test_a_rule_that_is_not_enabled_may_ask_for_anything() -> None:
    check([rule(convert="nothing", enabled=False), rule(convert="safetensors:bf16", output="{dir}/")], plugins.get())


# --- where outputs go ---------------------------------------------------------------------------------------------

FILE = Place("/mnt/models", "org/llama/model.bin", "org/llama/model.bin", "model", "0123456789abcdef", 2)
DIRECTORY = Place("/mnt/models", "org/llama", "org/llama/model.safetensors", "llama", "0123456789abcdef", 1)
ROOT = Place("/mnt/models", "", "model.safetensors", "models", "0123456789abcdef", 1)


def output(place: Place, template: str | None, convert: str = "safetensors") -> str:
    target, recipe = target_of(rule(convert=convert), (), plugins.get())
    return output_of(place, target, recipe, parse(template) if template is not None else None)


@pytest.mark.parametrize(
    ("place", "template", "expected"),
    [
        (FILE, "{root}/.converted/{dir}/{stem}{ext}", "/mnt/models/.converted/org/llama/model.safetensors"),
        (FILE, "{dir}/{stem}{ext}", "/mnt/models/org/llama/model.safetensors"),
        (FILE, "/fast/{id}-{version}{ext}", "/fast/0123456789abcdef-2.safetensors"),
        (FILE, "{root}/../out/{format}/{stem}{ext}", "/mnt/out/safetensors/model.safetensors"),
        (FILE, "out/", "/mnt/models/out/model.safetensors"),
        (FILE, "{{x}}/{stem}{ext}", "/mnt/models/{x}/model.safetensors"),
        (FILE, None, "/mnt/models/org/llama/model.safetensors"),
        (DIRECTORY, None, "/mnt/models/org/llama.safetensors"),
        (DIRECTORY, "{root}/.converted/{dir}/{stem}{ext}", "/mnt/models/.converted/org/llama.safetensors"),
        (DIRECTORY._replace(path="llama", primary="llama/m"), "{root}/c/{dir}/{stem}{ext}", "/mnt/models/c/llama.safetensors"),
        (DIRECTORY._replace(name="org/llama"), "c/{name}{ext}", "/mnt/models/c/org/llama.safetensors"),
        (DIRECTORY._replace(name="a/b/c"), "c/{name}{ext}", "/mnt/models/c/a_b_c.safetensors"),
        (DIRECTORY._replace(name="../../etc"), "c/{name}{ext}", "/mnt/models/c/.._.._etc.safetensors"),
        (DIRECTORY._replace(name="../x"), "c/{name}{ext}", "/mnt/models/c/__/x.safetensors"),
        (DIRECTORY._replace(name="a\nb"), "c/{name}{ext}", "/mnt/models/c/a_b.safetensors"),
        (ROOT, None, "/mnt/models.safetensors"),
    ],
)
def test_outputs(place: Place, template: str | None, expected: str) -> None:
    assert output(place, template) == expected
    check_output(place, expected)


def test_a_recipe_is_part_of_the_default_name_and_of_templates() -> None:
    assert output(FILE, None, "safetensors:bf16") == "/mnt/models/org/llama/model.bf16.safetensors"
    assert output(FILE, "q/{stem}-{recipe}{ext}", "safetensors:bf16") == "/mnt/models/q/model-bf16.safetensors"
    assert output(DIRECTORY, None, "huggingface") == "/mnt/models/org/llama-huggingface"


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert output(FILE, "~/converted/{stem}{ext}") == "/home/me/converted/model.safetensors"


@pytest.mark.parametrize(
    ("place", "template", "message"),
    [
        (FILE, "{dir}/{stem}.bin", "is the checkpoint itself"),
        (DIRECTORY, "{dir}/{stem}", "is the checkpoint itself"),
        (DIRECTORY, "{dir}/{stem}/model{ext}", "is the checkpoint itself"),  # its primary file
        (DIRECTORY, "{dir}/{stem}/x{ext}", "lies in the checkpoint"),
        (DIRECTORY, "{root}", "holds the checkpoint"),
        (ROOT, "c/{stem}{ext}", "lies in the checkpoint"),
    ],
)
def test_an_output_is_not_its_source(place: Place, template: str, message: str) -> None:
    with pytest.raises(ConversionError, match=f"{message}.*give the rule another output"):
        check_output(place, output(place, template))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./\0\n~"), max_size=40))
def test_no_name_leads_anywhere_else(name: str) -> None:
    for template in ("/out/{name}{ext}", "/out/{stem}{ext}", "/out/"):
        found = output(FILE._replace(name=name), template)
        inside = os.path.relpath(found, "/out")
        assert found.startswith("/out/")
        assert ".." not in inside.split("/")
        assert inside.count("/") <= 1
        assert "\0" not in found
