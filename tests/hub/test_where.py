"""``--where`` expressions: what they find, and what is said where they are wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelhub.catalog import Catalog
from modelhub.errors import UsageError
from modelhub.scan import scan
from modelhub.where import parse, quantity
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors

GB = 10**9


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drive")
    safetensors(root / "llama" / "llama-7b.safetensors", {"model.layers.0.q.weight": (64, 64)}, dtype="BF16")
    safetensors(root / "llama" / "lora.safetensors", {"layers.10.lora_A.weight": (8, 4), "layers.2.lora_B.weight": (4, 8)})
    safetensors(root / "100%_sure!.safetensors", {"w": (3,)}, dtype="F16")
    os.utime(root / "100%_sure!.safetensors", (1_700_000_000, 1_700_000_000))  # 2023-11-14T22:13:20Z
    (root / "broken.safetensors").write_bytes(b"\xff" * 64)
    return root


@pytest.fixture(scope="module", params=[True, False], ids=["driver", "sqlalchemy"])
def catalog(request: pytest.FixtureRequest, drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with (
        Catalog.open(str(tmp_path_factory.mktemp("catalog") / "catalog.db"), light=request.param) as catalog,
        ParsePool(1) as pool,
    ):
        scan(catalog, [str(drive)], pool=pool, plugins="x")
        lora = catalog.named("lora")[0]
        catalog.set_tags(lora, {"team": "Vision", "reviewed": "yes"})
        catalog.set_alias("prod", lora)
        catalog.add_note(lora, "Trained on cats")
        yield catalog


@pytest.mark.parametrize(
    ("expressions", "names"),
    [
        (["*"], "100%_sure! broken llama-7b lora"),
        (["format=SafeTensors"], "100%_sure! broken llama-7b lora"),
        (["format!=safetensors"], ""),
        (["size>8KB"], "llama-7b"),
        (["size>8KiB"], "llama-7b"),
        (["size<=64"], "broken"),
        (["parameters>=4K"], "llama-7b"),
        (["parameters=64"], "lora"),
        (["parameters = 3"], "100%_sure!"),
        (["precision~f1", "state=ready"], "100%_sure! llama-7b"),
        (["precision=bf16"], "llama-7b"),
        (["precision!=bf16", "state=ready"], "100%_sure! lora"),
        (["dtype=F16"], "100%_sure!"),
        (["dtype~F16"], "100%_sure! llama-7b"),
        (["dtype!=bf16", "state=ready"], "100%_sure! lora"),
        (["state=invalid"], "broken"),
        (["state!=invalid", "name~l"], "llama-7b lora"),
        (["tensor~lora_A"], "lora"),
        (["tensor~LORA_a"], "lora"),
        (["tensor~layers.10"], "lora"),
        (["tensor~layers.1."], ""),
        (["tensor~layers.0.q"], "llama-7b"),
        (["tensor~weight"], "llama-7b lora"),
        (["tensor~#"], ""),
        (["tensors=2"], "lora"),
        (["files=1", "name=lora"], "lora"),
        (["path~LLAMA/"], "llama-7b lora"),
        (["path=llama/lora.safetensors"], "lora"),
        (["path!=llama/lora.safetensors", "path~llama/"], "llama-7b"),
        (["name~%_"], "100%_sure!"),
        (["name~!"], "100%_sure!"),
        (["name='lora'"], "lora"),
        (["tag.team=vision"], "lora"),
        (["tag.team~vis"], "lora"),
        (["tag.team=*"], "lora"),
        (["tag.team!=vision"], "100%_sure! broken llama-7b"),
        (["tag.nothing=*"], ""),
        (["alias=prod"], "lora"),
        (["note~CATS"], "lora"),
        (["modified=2023-11-14"], "100%_sure!"),
        (["modified<2023-11-15"], "100%_sure!"),
        (["modified<=2023-11-13"], ""),
        (["modified>2023-11-14"], "broken llama-7b lora"),
        (["modified>=2023-11-14T22:13:20Z", "modified<=2023-11-14T22:13:20Z"], "100%_sure!"),
        (["derived_from="], "100%_sure! broken llama-7b lora"),
        (["root~drive"], "100%_sure! broken llama-7b lora"),
        (["digest!=sha256:" + "0" * 64, "version=1", "name=lora"], "lora"),
    ],
)
def test_what_is_found(catalog: Catalog, expressions: list[str], names: str) -> None:
    found = catalog.models(where=expressions)
    assert " ".join(model.name for model in found) == names
    assert catalog.count(where=expressions) == len(found)
    assert [row[0] for row in catalog.select(["name"], where=expressions)] == [model.name for model in found]


@pytest.mark.parametrize(
    ("text", "names"),
    [("LLAMA", "llama-7b lora"), ("vision", "lora"), ("reviewed", "lora"), ("%", "100%_sure!"), ("nothing", "")],
)
def test_free_text(catalog: Catalog, text: str, names: str) -> None:
    assert " ".join(model.name for model in catalog.models(text)) == names


def test_sort_and_limit(catalog: Catalog) -> None:
    assert [model.name for model in catalog.models(sort="-size", limit=2)] == ["llama-7b", "lora"]
    assert [model.name for model in catalog.models(sort="modified", limit=1)] == ["100%_sure!"]
    with pytest.raises(UsageError, match=r"'weight' is not a field to sort by.*size"):
        catalog.models(sort="weight")


def test_totals(catalog: Catalog) -> None:
    totals = catalog.totals(where=["state=ready"])
    assert [(row["format"], row["precision"], row["checkpoints"]) for row in totals] == [
        ("safetensors", "BF16", 1),
        ("lora", "F32", 1),
        ("safetensors", "F16", 1),
    ]
    assert sum(row["parameters"] for row in totals) == 64 * 64 + 64 + 3


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("sise>1GB", "'sise' is not a field; did you mean size"),
        ("nonsense", "is not an expression"),
        ("size>lots", "'lots' is no value for size"),
        ("size~1", "is a number"),
        ("parameters>7GB", "'7GB' is no value for parameters"),
        ("modified=yesterday", "is no time"),
        ("digest=abc", "is no SHA-256"),
        ("tensor=x", "takes ~"),
        ("path<x", "neither more nor less"),
        ("dtype>F16", "neither more nor less"),
    ],
)
def test_what_is_said_of_a_wrong_one(expression: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(expression)
    assert says in str(error.value)
    assert error.value.exit_status == 2


def test_units() -> None:
    assert quantity("1.5GB", "size", "size") == 1_500_000_000
    assert quantity("1GiB", "size", "size") == 1 << 30
    assert quantity("7B", "count", "parameters") == 7 * GB
    assert quantity("350m", "count", "parameters") == 350_000_000
    assert quantity("4096", "size", "size") == 4096


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_a_usage_error(text: str) -> None:
    try:
        condition = parse(text)
    except UsageError:
        return
    assert condition.sql.count("?") == len(condition.values)


@given(words=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_any_text_can_be_searched_for(catalog: Catalog, words: str) -> None:
    assert len(catalog.models(words)) <= 4
    assert catalog.models(where=[f"name~{words}"]) is not None
