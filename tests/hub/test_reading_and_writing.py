"""Reading files and writing the catalog keep out of each other's way: what is hashed stands still, and nobody waits for the
catalog while a file is read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from modelhub.catalog import Catalog
from modelhub.digest import digest_file
from modelhub.errors import SourceChanged
from modelhub.plugins import get
from modelhub.rescan import rescan
from modelhub.scan import scan
from modelhub.verify import verify
from modelhub.walk import Part
from modelhub.workers import ParsePool, Result, Task

from tests.storm import checkpoint


def write_at_once(catalog: str) -> None:
    """Fails where somebody else has a write transaction open."""
    with closing(sqlite3.connect(catalog, timeout=0.05, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


class Writing:
    """A pool whose results come while somebody else writes to the catalog."""

    def __init__(self, pool: ParsePool, catalog: str) -> None:
        self.pool, self.catalog, self.times = pool, catalog, 0

    def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
        for result in self.pool.inspect(tasks):
            write_at_once(self.catalog)
            self.times += 1
            yield result


@pytest.mark.parametrize("how", ["changed", "grown", "replaced"])
def test_rule_10_a_hash_of_what_did_not_stand_still_is_thrown_away(tmp_path: Path, pool: ParsePool, how: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(checkpoint("m", 1 << 20))

    def meddle(_: int) -> None:
        if how == "changed":
            with path.open("r+b") as file:
                file.seek(5000)
                file.write(b"meddled")
        elif how == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        else:
            other = tmp_path / "other"
            other.write_bytes(checkpoint("n", 1 << 20))
            other.replace(path)

    if how != "replaced":  # then what is being read is still the old one, whole
        with pytest.raises(SourceChanged, match="changed while it was being hashed"):
            digest_file(str(path), meddle)
    path.write_bytes(checkpoint("m", 1 << 20))
    with Catalog.open(str(tmp_path / "c.db")) as catalog:
        scan(catalog, [str(tmp_path)], pool=pool)
        (model,) = catalog.models()
        try:
            verify(model, plugins=get(), pool=pool, level="digest", catalog=catalog, progress=meddle)
        except SourceChanged:
            assert how != "replaced"
        (model,) = catalog.models()
        assert model.digest is None or how == "replaced"  # it is that of the file which the catalog knows, not of the new one
        assert catalog.file_digest(str(path)) is None


def test_rule_11_nobody_waits_for_the_catalog_while_files_are_parsed_or_hashed(tmp_path: Path, pool: ParsePool) -> None:
    place = str(tmp_path / "c.db")
    for number in range(1200):
        path = tmp_path / "drive" / f"d{number % 12}" / f"m{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(checkpoint(f"m{number}"))
    writing = Writing(pool, place)
    with Catalog.open(place) as catalog:
        scan(catalog, [str(tmp_path / "drive")], pool=writing)
        assert writing.times >= 12
        for number in range(0, 1200, 12):
            (tmp_path / "drive" / "d0" / f"m{number}.safetensors").write_bytes(checkpoint(f"other{number}", 65))
        rescan(catalog, str(tmp_path / "drive"), [Part(b"d0", False)], pool=writing)
        assert writing.times >= 13
        model = catalog.models(limit=1)[0]
        verify(model, plugins=get(), pool=pool, level="digest", catalog=catalog, progress=lambda _: write_at_once(place))
        assert catalog.refresh(model).digest
