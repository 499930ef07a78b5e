"""Migrations: from every earlier schema to the newest with data in it, and the same schema by every way."""

from __future__ import annotations

import os
import runpy
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from modelhub.catalog import Catalog
from modelhub.catalog.database import Database
from modelhub.catalog.schema import metadata
from modelhub.catalog.upgrade import FRESH, HEAD, migrate, migrations_path
from modelhub.errors import CatalogError

DATA = Path(__file__).parent / "catalogs"
"""One file a revision: rows as that revision had them."""

REVISIONS = [script.revision for script in reversed(list(ScriptDirectory(migrations_path()).walk_revisions()))]


def at_revision(path: Path, revision: str) -> None:
    """A catalog as a modelhub of that revision left it."""
    database = Database(str(path))
    migrate(database, revision)
    database.close()
    with sqlite3.connect(path) as connection:
        connection.executescript((DATA / f"{revision}.sql").read_text())
    connection.close()


def shape(path: Path) -> dict[str, object]:
    """Tables with their columns and foreign keys, and indexes: what two schemas must have in common, whatever the order."""
    connection = sqlite3.connect(path)
    found: dict[str, object] = {}
    for kind, name, table in connection.execute(
        "SELECT type,name,tbl_name FROM sqlite_master WHERE tbl_name<>'alembic_version'"
    ).fetchall():
        if kind == "table":
            found[name] = (
                connection.execute(f"PRAGMA table_xinfo({name})").fetchall(),
                sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({name})")),
                connection.execute("SELECT wr FROM pragma_table_list WHERE name=?", (name,)).fetchall(),
            )
        else:
            unique = [row[2:4] for row in connection.execute(f"PRAGMA index_list({table})") if row[1] == name]
            columns = tuple(row[2] for row in connection.execute(f"PRAGMA index_info({name})"))
            found[f"{table} {columns}"] = unique
    connection.close()
    return found


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(migrations_path()).get_heads() == [HEAD]


def test_there_is_data_for_every_revision() -> None:
    assert sorted(path.stem for path in DATA.glob("*.sql")) == sorted(REVISIONS)


def test_a_fresh_catalog_is_what_the_migrations_make(tmp_path: Path) -> None:
    fresh, migrated = tmp_path / "fresh.db", tmp_path / "migrated.db"
    Catalog.open(str(fresh)).close()
    database = Database(str(migrated))
    migrate(database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()
    assert shape(fresh) == shape(migrated)


def test_the_statements_of_a_fresh_catalog_are_the_schemas() -> None:
    script = runpy.run_path(str(Path(migrations_path()) / "write_fresh.py"))["script"]
    assert Path(FRESH).read_text() == script(), "run migrations/write_fresh.py"


@pytest.mark.parametrize("revision", REVISIONS)
def test_upgrade_with_data_in_it(tmp_path: Path, own_home: Path, revision: str) -> None:
    path = tmp_path / "catalog.db"
    at_revision(path, revision)
    with Catalog.open(str(path)) as catalog:
        assert catalog.check() == []
        (llama,) = catalog.named("llama")
        assert llama.id == "00000000000000aa"
        assert llama.path == "llama.safetensors"
        assert llama.root == "/models"
        assert llama.dtypes == {"F32": 16}
        assert llama.files == ("llama.safetensors",)
        assert llama.tags == {"team": "vision"}
        assert llama.aliases == ("llama@prod",)
        assert llama.notes == ("trained on cats",)
        assert llama.table().tensors[0].name == "weight"
        assert catalog.lineage(llama)[0]["recipe"] == "bf16"
        assert [row["version"] for row in catalog.versions(llama)] == [1]
    assert shape(path) == shape(_fresh(tmp_path))
    made = os.listdir(own_home / "backups") if revision != HEAD else []
    assert len(made) == (revision != HEAD)


def _fresh(tmp_path: Path) -> Path:
    Catalog.open(str(tmp_path / "fresh.db")).close()
    return tmp_path / "fresh.db"


def test_a_newer_catalog_is_refused(tmp_path: Path) -> None:
    path = _fresh(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num='9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CatalogError, match=r"newer than this modelhub: it has revision 9999.*upgrade modelhub"):
        Catalog.open(str(path))
    assert path.read_bytes() == before


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(CatalogError, match="something else than a modelhub catalog"):
        Catalog.open(str(path))


def test_a_migration_that_breaks_references_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before the commit: here it is an old catalog that has a reference to nothing."""
    path = tmp_path / "catalog.db"
    at_revision(path, REVISIONS[0])
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO tag (checkpoint,name,value) VALUES (999,'lost','x')")
    connection.close()
    database = Database(str(path))
    with pytest.raises(CatalogError, match="would break 1 references, first in table tag"):
        migrate(database)
    database.close()


def test_many_may_make_the_first_catalog_at_once(tmp_path: Path) -> None:
    """Threads with a connection each stand for processes: SQLite's locks hold between either."""
    for number in range(25):
        path = tmp_path / str(number) / "catalog.db"
        together = threading.Barrier(6)

        def make(path: Path = path, together: threading.Barrier = together) -> None:
            together.wait(10)
            Catalog.open(str(path)).close()

        with ThreadPoolExecutor(6) as pool:
            for made in [pool.submit(make) for _ in range(6)]:
                made.result(60)
        assert sqlite3.connect(path).execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
