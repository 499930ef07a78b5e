"""The catalog itself: opening it, what people write in it, digests, lineage, damage, two processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub import home
from modelhub.catalog import Catalog
from modelhub.catalog.content import Provenance
from modelhub.catalog.database import shown, sqlite_path
from modelhub.errors import CatalogError, ModelNotFound, UsageError
from modelhub.model import Model
from modelhub.scan import scan
from modelhub.types import Finding
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors


@pytest.fixture(params=[True, False], ids=["driver", "sqlalchemy"])
def catalog(request: pytest.FixtureRequest) -> Iterator[Catalog]:
    with Catalog.open(light=request.param) as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path, catalog: Catalog, pool: ParsePool) -> Path:
    drive = tmp_path / "drive"
    safetensors(drive / "a.safetensors", fill=1)
    safetensors(drive / "b.safetensors", {"other": (3,)}, fill=2)
    safetensors(drive / "llama" / "model.safetensors", fill=3)
    (drive / "llama" / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 128}))
    scan(catalog, [str(drive)], pool=pool)
    return drive


def only(catalog: Catalog, name: str) -> Model:
    (model,) = catalog.named(name)
    return model


# --- where it is --------------------------------------------------------------------------------------------------


def test_flag_beats_environment_beats_config(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.catalog_url() == str(own_home / "catalog.db")
    (own_home / "config.toml").write_text('catalog = "mine.db"\n')
    assert home.catalog_url() == str(own_home / "mine.db")
    monkeypatch.setenv("MODELHUB_CATALOG", str(tmp_path / "env.db"))
    assert home.catalog_url() == str(tmp_path / "env.db")
    monkeypatch.chdir(tmp_path)
    assert home.catalog_url("flag.db") == str(tmp_path / "flag.db")
    assert home.catalog_url("postgresql://me@host/x") == "postgresql://me@host/x"


def test_a_config_that_is_not_toml_is_said(own_home: Path) -> None:
    (own_home / "config.toml").write_text("catalog = \n")
    with pytest.raises(UsageError, match="is not valid TOML"):
        home.catalog_url()


def test_urls(tmp_path: Path) -> None:
    assert sqlite_path("sqlite:////var/x.db") == "/var/x.db"
    assert sqlite_path("postgresql://host/x") == ""
    for url in ("sqlite://", "mysql://host/x"):
        with pytest.raises(CatalogError):
            sqlite_path(url)
    assert shown("postgresql://me:secret@host/x") == "postgresql://me@host/x"


def test_a_catalog_in_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="cannot be made"):
        Catalog.open(str(tmp_path / "file" / "catalog.db"))
    with pytest.raises(CatalogError, match="cannot be opened"):
        Catalog.open(str(tmp_path))


def test_reading_and_writing_import_no_sqlalchemy(drive: Path, catalog: Catalog) -> None:
    code = (
        "import sys; from modelhub.catalog import Catalog\n"
        "with Catalog.open() as c: models = c.models('a', ['size>1'], '-size', 5); rows = c.select(['name', 'size']); t = "
        "c.totals(); r = c.roots(); c.set_tags(models[0], {'team': 'vision'})\n"
        "assert models and rows and t and r\n"
        "print(*[n for n in ('sqlalchemy', 'alembic', 'numpy', 'pluggy', 'platformdirs', 'tomllib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- what people write --------------------------------------------------------------------------------------------


def test_aliases(catalog: Catalog, drive: Path) -> None:
    a, b = only(catalog, "a"), only(catalog, "b")
    catalog.set_alias("best@prod", a)
    catalog.set_alias("best", b)
    assert catalog.aliased("best@prod") == a
    catalog.set_alias("best@prod", b)
    assert b.aliases == ("best", "best@prod")
    assert a.aliases == ()
    assert catalog.remove_alias("best")
    assert not catalog.remove_alias("best")
    for wrong in ("", "a b", "x:1", "@x", "/x", "a@b@c", "x\n"):
        with pytest.raises(UsageError):
            catalog.set_alias(wrong, a)


def test_tags_and_notes(catalog: Catalog, drive: Path) -> None:
    a = only(catalog, "a")
    catalog.set_tags(a, {"team": "vision", "name": "größe \udcff\0"})
    catalog.set_tags(a, {"team": None, "stage": ""})
    assert a.tags == {"name": "größe \\xff\\x00", "stage": ""}
    catalog.add_note(a, "one")
    catalog.add_note(a, "two")
    assert a.notes == ("one", "two")
    assert catalog.remove_notes(a) == 2
    with pytest.raises(UsageError):
        catalog.set_tags(a, {"a b": "x"})


def test_export_and_import_into_another_catalog(catalog: Catalog, drive: Path, pool: ParsePool, tmp_path: Path) -> None:
    a, b = only(catalog, "a"), only(catalog, "b")
    catalog.set_alias("best@prod", a)
    catalog.set_tags(a, {"team": "vision"})
    catalog.add_note(b, "meh")
    catalog.add_note(only(catalog, "llama"), "gone there")
    data = json.loads(json.dumps(catalog.export_registry()))
    (drive / "b.safetensors").rename(drive / "renamed.safetensors")
    digest = hashlib.sha256((drive / "renamed.safetensors").read_bytes()).digest()
    data["models"] = [model | ({"digest": f"sha256:{digest.hex()}"} if model["name"] == "b" else {}) for model in data["models"]]
    (drive / "llama" / "model.safetensors").unlink()
    with Catalog.open(str(tmp_path / "other.db")) as other:
        scan(other, [str(drive)], pool=pool)
        path = drive / "renamed.safetensors"
        other.set_file_digest(str(path), digest, path.stat())
        assert other.import_registry(data) == (2, ["llama"])
        assert other.import_registry(data) == (2, ["llama"])
        assert only(other, "a").aliases == ("best@prod",)
        assert only(other, "a").tags == {"team": "vision"}
        assert only(other, "renamed").notes == ("meh",)
        with pytest.raises(UsageError, match="no export"):
            other.import_registry({"x": 1})
        with pytest.raises(UsageError, match="damaged"):
            other.import_registry({"modelhub": 1, "models": [{"id": only(other, "a").id}]})


def test_removing_a_model_leaves_its_file_and_a_scan_finds_it_again(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    a = only(catalog, "a")
    catalog.set_tags(a, {"x": "y"})
    assert catalog.remove([a]) == 1
    assert catalog.named("a") == []
    assert (drive / "a.safetensors").exists()
    assert scan(catalog, [str(drive)], pool=pool).found == 3
    assert only(catalog, "a").id != a.id
    assert only(catalog, "a").tags == {}
    assert catalog.check() == []


def test_removing_a_root(catalog: Catalog, drive: Path) -> None:
    assert catalog.remove_root(str(drive)) == 3
    assert (catalog.models(), catalog.roots()) == ([], [])
    catalog.compact()
    with catalog.database.read() as reader:
        assert [
            reader.value(f"SELECT count(*) FROM {table}") for table in ("file", "content", "tensor_table", "tensor_names")
        ] == [0] * 4
    with pytest.raises(ModelNotFound, match="is not a root"):
        catalog.remove_root(str(drive))


# --- digests, findings, lineage -----------------------------------------------------------------------------------


def test_a_file_digest_counts_for_the_stat_it_was_made_under(catalog: Catalog, drive: Path) -> None:
    path = drive / "a.safetensors"
    digest = hashlib.sha256(path.read_bytes()).digest()
    assert catalog.file_digest(str(path)) is None
    assert catalog.set_file_digest(str(path), digest, path.stat())
    assert catalog.file_digest(str(path)) == digest
    assert only(catalog, "a").digest == f"sha256:{digest.hex()}"
    before = path.stat()
    os.utime(path, (1, 1))
    assert catalog.file_digest(str(path)) is None
    assert not catalog.set_file_digest(str(path), digest, path.stat()), "the catalog knows another stat"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert catalog.file_digest(str(path)) == digest
    assert not catalog.set_file_digest(str(drive / "nothing"), digest, before)


def test_bit_rot_splits_the_content(catalog: Catalog, drive: Path) -> None:
    path, a = drive / "a.safetensors", only(catalog, "a")
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    catalog.set_tensor_digests(a, b"\7" * 32)
    catalog.set_file_digest(str(path), b"\2" * 32, path.stat())
    assert catalog.file_digest(str(path)) == b"\2" * 32
    assert catalog.tensor_digests(a) is None


def overwrite(path: Path, byte: int, time: int) -> None:
    """Other weights in the same shapes: neither head nor tail of the file tells."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes([byte]) * 100)
    os.utime(path, ns=(time, time))


def digest_all(catalog: Catalog, model: Model) -> None:
    for path in model.file_paths:
        catalog.set_file_digest(path, hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path))


def test_rule_13_weights_that_were_overwritten_in_place_are_new_content(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    path = safetensors(drive / "big.safetensors", {"w": (100, 100)})
    scan(catalog, [str(drive)], pool=pool)
    before = only(catalog, "big")
    digest_all(catalog, before)
    first = only(catalog, "big").digest
    catalog.set_alias("best", before)
    catalog.set_findings(before, {"values": [Finding("nan", "error", "3 NaNs")]})
    catalog.set_tensor_digests(before, b"\7" * 32)
    overwrite(path, 5, 10**18)
    scan(catalog, [str(drive)], pool=pool)
    assert only(catalog, "big").version == 1, "nobody has read it yet"
    for _ in range(2):
        digest_all(catalog, before)
        after = only(catalog, "big")
        assert (after.id, after.version, after.aliases) == (before.id, 2, ("best (stale)",))
        assert (after.findings, catalog.tensor_digests(after)) == ((), None)
        assert [(old["version"], old["digest"]) for old in catalog.versions(after)] == [(1, first)]
    catalog.set_file_digest(str(path), b"\3" * 32, path.stat())  # nobody wrote to it: it rots
    assert only(catalog, "big").version == 2


def test_rule_14_a_touched_file_that_is_read_again_is_the_same(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    path = drive / "a.safetensors"
    digest_all(catalog, only(catalog, "a"))
    before = only(catalog, "a")
    os.utime(path, (5, 5))
    scan(catalog, [str(drive)], pool=pool)
    digest_all(catalog, before)
    assert (only(catalog, "a").version, only(catalog, "a").digest) == (1, before.digest)


def test_shards_that_were_overwritten_together_are_one_new_version(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shards = [safetensors(drive / "sharded" / name, {name[10]: (100, 100)}) for name in names]
    index = {"metadata": {}, "weight_map": {name[10]: name for name in names}}
    (drive / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    scan(catalog, [str(drive)], pool=pool)
    (model,) = (model for model in catalog.models() if model.path.startswith("sharded"))
    assert len(model.files) == 3
    digest_all(catalog, model)
    for version in (2, 3):
        for shard in shards:
            overwrite(shard, version, time.time_ns())
        scan(catalog, [str(drive)], pool=pool)
        digest_all(catalog, model)
        after = catalog.refresh(model)
        assert (after.id, after.version, after.digest is None) == (model.id, version, False)
    assert len({old["digest"] for old in catalog.versions(after)} | {after.digest}) == 3


def test_the_digest_of_several_files_is_what_sha256sum_says(catalog: Catalog, drive: Path) -> None:
    model = only(catalog, "llama")
    for path in model.file_paths:
        assert catalog.refresh(model).digest is None
        catalog.set_file_digest(path, hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path))
    command = "sha256sum config.json model.safetensors | LC_ALL=C sort -k2 | sha256sum"
    said = subprocess.run(command, shell=True, cwd=drive / "llama", capture_output=True, text=True, check=True).stdout.split()[0]
    assert catalog.refresh(model).digest == f"sha256:{said}"
    assert [found.name for found in catalog.models(where=[f"digest=sha256:{said}"])] == ["llama"]


def test_tensor_digests_follow_the_content(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    os.link(drive / "a.safetensors", drive / "same.safetensors")
    scan(catalog, [str(drive)], pool=pool)
    a, same, b = (only(catalog, name) for name in ("a", "same", "b"))
    assert catalog.set_tensor_digests(a, b"x" * 32)
    assert catalog.tensor_digests(a) == catalog.tensor_digests(same) == b"x" * 32
    assert catalog.tensor_digests(b) is None
    assert not catalog.set_tensor_digests(a._replace(version=7), b"")


def test_findings_by_level(catalog: Catalog, drive: Path) -> None:
    a = only(catalog, "a")
    catalog.set_findings(a, {"values": [Finding("nan", "error", "3 NaNs", tensor="w\0")]})
    catalog.set_findings(a, {"digest": [Finding("digest", "info", "first read")]})
    catalog.set_findings(a, {"values": [Finding("nan", "error", "4 NaNs")]})
    assert {finding.message for finding in a.findings} == {"first read", "4 NaNs"}
    assert [model.name for model in catalog.models(where=["finding=nan"])] == ["a"]


def test_lineage(catalog: Catalog, drive: Path) -> None:
    a, b, llama = (only(catalog, name) for name in ("a", "b", "llama"))
    how = Provenance(plugin="safetensors", plugin_version="1", recipe="bf16", options={"to": "x"}, errors={"w": {"rmse": 0.5}})
    catalog.record_output(llama, [a, b], how)
    llama = catalog.refresh(llama)
    assert llama.derived_from == a.id
    assert [(step["parent"], step["recipe"], step["errors"]) for step in llama.lineage] == [
        (a.id, "bf16", {"w": {"rmse": 0.5}}),
        (b.id, "bf16", {"w": {"rmse": 0.5}}),
    ]
    assert [model.name for model in catalog.children(a)] == ["llama"]
    catalog.remove([a])
    assert [step["parent"] for step in llama.lineage] == [None, b.id]
    assert llama.lineage[0]["path"] == str(drive / "a.safetensors")


def test_add_takes_one_checkpoint_in(catalog: Catalog, drive: Path, pool: ParsePool, tmp_path: Path) -> None:
    inside, outside = safetensors(drive / "out" / "new.safetensors", fill=8), safetensors(tmp_path / "away" / "x.safetensors")
    one, two = (catalog.add(pool.inspect_path(str(path))) for path in (inside, outside))
    assert (one.root, one.path, one.state) == (str(drive), "out/new.safetensors", "ready")
    assert (two.root, two.path, two.files) == (None, str(outside), (str(outside),))
    assert two.file_paths == (str(outside),)
    assert two.table().tensors
    safetensors(outside, fill=9)
    again = catalog.add(pool.inspect_path(str(outside)))
    assert (again.id, again.version) == (two.id, 2)
    assert catalog.set_file_digest(str(outside), b"\3" * 32, outside.stat())
    assert scan(catalog, [str(drive)], pool=pool).unchanged == 4
    assert only(catalog, "new").id == one.id
    assert catalog.check() == []


# --- damage, turns ------------------------------------------------------------------------------------------------


def test_a_damaged_catalog_names_its_newest_backup(catalog: Catalog, drive: Path, own_home: Path) -> None:
    catalog.backup()
    newest = catalog.backup()
    catalog.close()
    path = own_home / "catalog.db"
    for name in ("catalog.db-wal", "catalog.db-shm"):
        (own_home / name).unlink(missing_ok=True)
    path.write_bytes(b"This is no database. " * 1000)
    with pytest.raises(CatalogError) as error:
        Catalog.open()
    assert "is damaged" in str(error.value)
    assert newest in str(error.value)
    os.replace(newest, path)
    with Catalog.open() as again:
        assert len(again.models()) == 3


def test_a_catalog_damaged_inside_is_found_by_the_check(catalog: Catalog, drive: Path, own_home: Path) -> None:
    with catalog.database.write() as writer:
        writer.run("UPDATE root SET search='x'")
    catalog.close()
    path = own_home / "catalog.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[4096 * 6 : 4096 * 30] = b"\xff" * (4096 * 24)
    path.write_bytes(data)
    said = ""
    try:
        with Catalog.open() as broken:
            said = " ".join(broken.check())
    except CatalogError as error:
        said = str(error)
    assert said


def test_backups_are_kept_to_five(catalog: Catalog) -> None:
    made = [catalog.backup(f"n{number}") for number in range(7)]
    assert catalog.backups() == made[:1:-1]
    for path in catalog.backups():
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_writers_take_turns(catalog: Catalog, drive: Path) -> None:
    a = only(catalog, "a")
    code = (
        "import sys; from modelhub.catalog import Catalog\n"
        f"with Catalog.open() as c:\n  m = c.get({a.id!r})\n"
        "  for n in range(40): c.set_tags(m, {f'{sys.argv[1]}-{n}': 'x'})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(3)]
    for number in range(40):
        catalog.set_tags(a, {f"here-{number}": "x"})
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(a.tags) == 160


def test_threads_may_share_it(catalog: Catalog, drive: Path) -> None:
    a = only(catalog, "a")
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                catalog.set_tags(a, {f"{number}-{step}": "x"})
                assert catalog.models("a")
        except Exception as error:  # noqa: BLE001 - reported below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(a.tags) == 40


def test_many_open_a_fresh_catalog_at_once(tmp_path: Path) -> None:
    code = (
        f"from modelhub.catalog import Catalog; c = Catalog.open({str(tmp_path / 'new.db')!r}); print(len(c.models()), c.check())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in running:
        out, error = process.communicate(timeout=60)
        assert out == "0 []\n", error
