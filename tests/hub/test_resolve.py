"""What a MODEL means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub.catalog import Catalog
from modelhub.errors import AmbiguousModel, ModelNotFound
from modelhub.resolve import resolve
from modelhub.scan import scan
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path, catalog: Catalog, pool: ParsePool) -> Path:
    for number, name in enumerate(("llama", "mistral", "x/twin", "y/twin")):
        safetensors(tmp_path / "drive" / f"{name}.safetensors", fill=number)
    scan(catalog, [str(tmp_path / "drive")], pool=pool)
    return tmp_path / "drive"


def test_every_way_to_name_a_model(catalog: Catalog, drive: Path, pool: ParsePool, monkeypatch: pytest.MonkeyPatch) -> None:
    (llama,) = catalog.named("llama")
    assert llama.id
    catalog.set_alias("llama@prod", llama)
    catalog.set_alias("best", llama)
    monkeypatch.chdir(drive)
    for reference in (
        str(drive / "llama.safetensors"),
        "llama.safetensors",
        "./x/../llama.safetensors",
        llama.id,
        llama.id[:10],
        "llama",
        "LLAMA",
        "llama@prod",
        "llama:1",
        "best",
    ):
        assert resolve(catalog, reference, pool=pool) == llama, reference


def test_an_existing_path_comes_before_a_name(
    catalog: Catalog, drive: Path, pool: ParsePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    safetensors(tmp_path / "mistral", {"w": (2,)}).rename(tmp_path / "mistral.safetensors")
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral.safetensors").rename(tmp_path / "mistral" / "inner.safetensors")
    monkeypatch.chdir(tmp_path)
    found = resolve(catalog, "mistral", pool=pool)
    assert (found.id, found.root, found.path) == (None, None, str(tmp_path / "mistral" / "inner.safetensors"))
    assert found.table().tensors[0].name == "w"
    assert found.to_json(details=True)["id"] is None


def test_a_path_that_changed_since_the_scan_is_looked_at_again(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    path = safetensors(drive / "llama.safetensors", {"w": (2,)}, dtype="F16")
    found = resolve(catalog, str(path), pool=pool)
    assert (found.id, found.precision) == (None, "F16")
    assert resolve(catalog, "llama", pool=pool).precision == "F32"


def test_without_a_catalog_paths_still_do(drive: Path, pool: ParsePool) -> None:
    assert resolve(None, str(drive / "llama.safetensors"), pool=pool).parameters == 32
    with pytest.raises(ModelNotFound):
        resolve(None, "llama", pool=pool)


def test_ambiguous_names_list_their_candidates(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    with pytest.raises(AmbiguousModel) as error:
        resolve(catalog, "twin", pool=pool)
    assert str(drive / "x/twin.safetensors") in str(error.value)
    assert str(drive / "y/twin.safetensors") in str(error.value)
    assert error.value.exit_status == 3
    (drive / "x" / "twin.safetensors").unlink()
    scan(catalog, [str(drive)], pool=pool)
    assert resolve(catalog, "twin", pool=pool).path == "y/twin.safetensors"


def test_unknown_names_suggest_near_ones(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    with pytest.raises(ModelNotFound, match="there is no model 'mistrall'; did you mean mistral"):
        resolve(catalog, "mistrall", pool=pool)
    for reference in ("nothing/at/all.bin", "llama@prod", "\udcff", ""):
        with pytest.raises(ModelNotFound):
            resolve(catalog, reference, pool=pool)


def test_versions(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    safetensors(drive / "llama.safetensors", dtype="F16")
    scan(catalog, [str(drive)], pool=pool)
    assert resolve(catalog, "llama:2", pool=pool).precision == "F16"
    with pytest.raises(ModelNotFound, match="version 1 of llama was replaced"):
        resolve(catalog, "llama:1", pool=pool)
    with pytest.raises(ModelNotFound):
        resolve(catalog, "llama:3", pool=pool)
