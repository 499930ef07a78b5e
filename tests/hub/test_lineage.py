"""Lineage as a graph: generations, merges, diamonds, circles, sources that were replaced or are gone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from modelhub.catalog import Catalog
from modelhub.catalog.content import Provenance
from modelhub.lineage import DEEPEST, MOST, Graph, lineage
from modelhub.model import Model, from_found
from modelhub.scan import scan
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


class Workshop:
    """A drive on which models are made of models; the weights do not matter here."""

    def __init__(self, place: Path, catalog: Catalog, pool: ParsePool) -> None:
        self.place, self.catalog, self.pool = place, catalog, pool
        self.count = 0

    def put(self, *names: str, dtype: str = "F32") -> list[Model]:
        for name in names:
            self.count += 1
            safetensors(self.place / f"{name}.safetensors", {f"w{self.count}": (4, 4)}, fill=self.count, dtype=dtype)
        scan(self.catalog, [str(self.place)], pool=self.pool)
        return [self.get(name) for name in names]

    def get(self, name: str) -> Model:
        (model,) = [model for model in self.catalog.named(name) if model.state == "ready"]
        return model

    def made(self, output: str, *sources: str, recipe: str = "", **how: Any) -> None:
        self.catalog.record_output(
            self.get(output),
            [self.get(name) for name in sources],
            Provenance(plugin="p", plugin_version="1", recipe=recipe, **how),
        )

    def digest(self, name: str) -> None:
        path = self.place / f"{name}.safetensors"
        assert self.catalog.set_file_digest(str(path), hashlib.sha256(path.read_bytes()).digest(), path.stat())

    def graph(self, name: str) -> Graph:
        return lineage(self.catalog, self.get(name))


@pytest.fixture
def shop(tmp_path: Path, catalog: Catalog, pool: ParsePool) -> Workshop:
    (tmp_path / "drive").mkdir()
    return Workshop(tmp_path / "drive", catalog, pool)


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(graph.nodes[edge.parent].name, graph.nodes[edge.child].name) for edge in graph.edges}


def names(graph: Graph) -> Sequence[str]:
    return sorted(node.name for node in graph.nodes)


def test_both_directions_over_generations(shop: Workshop) -> None:
    shop.put("a", "b", "c", "d", "e", "other")
    for output, source in (("b", "a"), ("c", "b"), ("d", "c"), ("e", "a")):
        shop.made(output, source, recipe="q8")
    graph = shop.graph("b")
    assert edges(graph) == {("a", "b"), ("b", "c"), ("c", "d")}
    assert graph.nodes[0].name == "b"
    assert not graph.truncated
    assert edges(shop.graph("a")) == {("a", "b"), ("b", "c"), ("c", "d"), ("a", "e")}
    assert edges(shop.graph("d")) == {("a", "b"), ("b", "c"), ("c", "d")}
    assert (names(shop.graph("other")), edges(shop.graph("other"))) == (["other"], set())


def test_what_nodes_and_edges_say(shop: Workshop) -> None:
    (a, *_) = shop.put("a", "b")
    errors = {
        "good": {"rmse": 0.1, "snr": 40.0, "max_error": 0.2},
        "bad": {"rmse": 0.01, "snr": 7.5, "max_error": 0.3},
        "same": {"rmse": 0.0, "snr": None, "max_error": 0.0},
    }
    shop.made("b", "a", recipe="q4", options={"to": "x"}, errors=errors, rule="small ones")
    document = shop.graph("b").to_json()
    assert document["truncated"] is False
    assert document["nodes"][1] == {
        "node": 1,
        "id": a.id,
        "name": "a",
        "path": str(shop.place / "a.safetensors"),
        "format": "safetensors",
        "precision": "F32",
        "size": a.size,
        "state": "ready",
        "version": 1,
        "digest": None,
    }
    (edge,) = document["edges"]
    created = edge.pop("created")
    assert created.endswith("Z")
    assert edge == {
        "parent": 1,
        "child": 0,
        "parent_version": 1,
        "child_version": 1,
        "stale": False,
        "kind": "conversion",
        "recipe": "q4",
        "plugin": "p",
        "plugin_version": "1",
        "rule": "small ones",
        "options": {"to": "x"},
        "worst": {"tensor": "bad", "rmse": 0.01, "snr": 7.5, "max_error": 0.3},
    }


def test_a_merge_has_two_parents_and_a_diamond_each_node_once(shop: Workshop) -> None:
    shop.put("base", "left", "right", "merged", "final")
    shop.made("left", "base")
    shop.made("right", "base")
    shop.made("merged", "left", "right", kind="merge")
    shop.made("final", "merged")
    whole = {("base", "left"), ("base", "right"), ("left", "merged"), ("right", "merged"), ("merged", "final")}
    for name in ("base", "merged", "final"):
        graph = shop.graph(name)
        assert edges(graph) == whole
        assert len(graph.edges) == 5
        assert names(graph) == ["base", "final", "left", "merged", "right"]
    # What a sibling was made of besides is not of this one's blood.
    assert edges(shop.graph("left")) == whole - {("base", "right"), ("right", "merged")}


def test_an_output_written_over_its_source_makes_a_circle_that_ends(shop: Workshop) -> None:
    shop.put("a", "b")
    shop.made("b", "a")
    shop.put("a", dtype="F16")  # version 2
    shop.made("a", "b")
    graph = shop.graph("a")
    found = {
        (graph.nodes[e.parent].name, e.parent_version, graph.nodes[e.child].name, e.child_version, e.stale) for e in graph.edges
    }
    assert found == {("b", 1, "a", 2, False), ("a", 1, "b", 1, True)}
    assert names(graph) == ["a", "b"]
    shop.made("a", "a")  # not that anybody should
    assert ("a", "a") in edges(shop.graph("a"))


def test_a_source_that_was_replaced_since_is_stale(shop: Workshop) -> None:
    shop.put("a", "b", "c")
    shop.made("b", "a")
    shop.made("c", "b")
    shop.put("a")
    graph = shop.graph("c")
    assert {(graph.nodes[e.parent].name, e.parent_version, e.stale) for e in graph.edges} == {("b", 1, False), ("a", 1, True)}
    (node,) = [node for node in graph.nodes if node.name == "a"]
    assert (node.version, node.state) == (2, "ready")
    # b is what was made of what a was: still a's child, and told to be stale.
    assert [(graph.stale, graph.parent_version) for graph in shop.graph("a").edges if graph.parent == 0] == [(True, 1)]
    # A replaced b is a's child no more, but c is what was made of what it was.
    shop.put("b")
    assert edges(shop.graph("a")) == set()
    assert edges(shop.graph("c")) == {("a", "b"), ("b", "c")}


def test_equal_bytes_are_not_stale_whatever_the_version(shop: Workshop) -> None:
    shop.put("a", "b")
    path = shop.place / "a.safetensors"
    kept = path.read_bytes()
    shop.digest("a")
    shop.made("b", "a")
    shop.put("a")
    shop.digest("a")
    assert [edge.stale for edge in shop.graph("b").edges] == [True]
    path.write_bytes(kept)
    scan(shop.catalog, [str(shop.place)], pool=shop.pool)
    shop.digest("a")
    assert shop.get("a").version == 3
    assert [edge.stale for edge in shop.graph("b").edges] == [False]


def test_rows_of_older_catalogs_tell_by_time(shop: Workshop) -> None:
    shop.put("a", "b")
    shop.made("b", "a")
    with shop.catalog.database.write() as writer:
        writer.run("UPDATE lineage SET parent_was=''")
    assert [(edge.parent_version, edge.stale) for edge in shop.graph("b").edges] == [(0, False)]
    time.sleep(0.01)
    shop.put("a")
    assert [edge.stale for edge in shop.graph("b").edges] == [True]


def test_what_was_written_of_a_source_stays_when_it_is_forgotten(shop: Workshop) -> None:
    (a, b, _, _) = shop.put("a", "b", "c", "side", dtype="F16")
    shop.made("b", "a", "side", recipe="first", errors={"w": {"rmse": 1.0, "snr": 3.0, "max_error": 2.0}})
    shop.made("c", "b", recipe="second")
    os.unlink(shop.place / "b.safetensors")
    shop.catalog.remove([shop.get("b")])
    graph = shop.graph("c")
    assert edges(graph) == {("a", "b"), ("side", "b"), ("b", "c")}
    (gone,) = [node for node in graph.nodes if node.state == "gone"]
    assert (gone.id, gone.name, gone.path, gone.format, gone.precision, gone.size, gone.version) == (
        b.id, "b", str(shop.place / "b.safetensors"), "safetensors", "F16", b.size, 1,
    )  # fmt: skip
    assert {(graph.nodes[e.child].name, e.how["recipe"], e.stale) for e in graph.edges} == {
        ("b", "first", False),
        ("c", "second", None),
    }
    assert {e.how["worst"]["snr"] for e in graph.edges if e.how["worst"]} == {3.0}
    # And from above: what lies beyond the gap is known.
    assert ("b", "c") in edges(shop.graph("a"))
    # The first ones go as well.
    shop.catalog.remove([shop.get("a"), shop.get("side")])
    graph = shop.graph("c")
    assert edges(graph) == {("a", "b"), ("side", "b"), ("b", "c")}
    assert {node.name: node.state for node in graph.nodes} == {"a": "gone", "b": "gone", "side": "gone", "c": "ready"}
    assert next(node.id for node in graph.nodes if node.name == "a") == a.id


def test_a_source_that_is_forgotten_and_found_anew_is_known_by_its_bytes(shop: Workshop) -> None:
    shop.put("a", "b")
    shop.digest("a")
    shop.made("b", "a")
    shop.catalog.remove([shop.get("a")])
    shop.put("c")
    assert shop.graph("b").nodes[1].state == "gone"  # nobody has read it yet
    shop.digest("a")
    graph = shop.graph("b")
    assert (graph.nodes[1].id, graph.nodes[1].state) == (shop.get("a").id, "ready")
    assert edges(shop.graph("a")) == {("a", "b")}


def test_a_source_outside_the_catalog(shop: Workshop, tmp_path: Path) -> None:
    shop.put("b")
    path = safetensors(tmp_path / "elsewhere" / "x\udcff.safetensors")
    outside = from_found(shop.pool.inspect_path(str(path)))
    shop.catalog.record_output(shop.get("b"), [outside], Provenance())
    document = shop.graph("b").to_json()
    (node,) = document["nodes"][1:]
    assert (node["id"], node["state"], node["version"], node["format"]) == (None, "gone", 0, "safetensors")
    assert node["path"].endswith("x\\xff.safetensors")
    assert document["edges"][0]["stale"] is None
    alone = lineage(shop.catalog, outside).to_json()
    assert (len(alone["nodes"]), alone["edges"]) == (1, [])


def test_a_graph_is_bounded(shop: Workshop) -> None:
    shop.put("a")
    a = shop.get("a")
    with shop.catalog.database.write() as writer:
        for number in range(MOST + 10):
            key = writer.next_key("checkpoint")
            writer.run(
                "INSERT INTO checkpoint (key,id,root,path,name,format,container,architecture,precision,dtypes,parameters,size,"
                "files,alone,tensors,state,reason,header,created_at,indexed_at,modified_at,search) "
                "SELECT ?,?,root,?,?,format,container,architecture,precision,dtypes,parameters,size,files,"
                "alone,tensors,state,reason,header,created_at,indexed_at,modified_at,search FROM checkpoint WHERE key=?",
                (key, f"{number:016x}", f"{number}".encode(), f"n{number}", a.key),
            )
            parent = a.key if number <= 500 else key - 1
            writer.run(
                "INSERT INTO lineage (key,checkpoint,version,parent,parent_path,kind,plugin,plugin_version,recipe,options,errors,"
                "created) VALUES (?,?,1,?,?,'conversion','','','','{}','{}',1)",
                (writer.next_key("lineage"), key, parent, b"/x"),
            )
    started = time.monotonic()
    wide = shop.graph("a")
    deep = shop.graph(f"n{MOST}")
    assert time.monotonic() - started < 5
    assert wide.truncated
    assert len(wide.nodes) <= MOST
    assert deep.truncated
    assert len(deep.nodes) <= DEEPEST * 2 + 2


def test_lineage_is_of_the_content_and_survives_a_move(shop: Workshop) -> None:
    shop.put("a", "b")
    shop.made("b", "a")
    (shop.place / "deep").mkdir()
    for name in ("a", "b"):
        os.rename(shop.place / f"{name}.safetensors", shop.place / "deep" / f"{name}2.safetensors")
    scan(shop.catalog, [str(shop.place)], pool=shop.pool)
    graph = shop.graph("b2")
    assert edges(graph) == {("a2", "b2")}
    assert graph.nodes[1].path == str(shop.place / "deep" / "a2.safetensors")
    assert [edge.stale for edge in graph.edges] == [False]
