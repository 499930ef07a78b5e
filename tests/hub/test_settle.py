"""Whether files stand still, judged by their stats and a clock of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelhub.catalog import Catalog
from modelhub.model import Model
from modelhub.rescan import Part, Rescan, rescan
from modelhub.scan import scan
from modelhub.settle import Settling
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors


@dataclass
class Clock:
    """Two clocks that this test sets: the monotonic one, and that of the wall."""

    now: float = 1000.0
    wall: float = 2_000_000_000.0

    def go(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def settling(self, seconds: float = 5.0, *, longest: float = 30.0, trust_clock: bool = False) -> Settling:
        return Settling(seconds, longest=longest, trust_clock=trust_clock, clock=lambda: self.now, wall=lambda: self.wall)


@dataclass
class Info:
    """As much of a stat as counts."""

    st_size: int = 1
    st_mtime_ns: int = 1
    st_ino: int = 1
    st_ctime_ns: int = 1


def look(settling: Settling, info: Info) -> tuple[float, bool]:
    settling.begin()
    verdict = settling.look(b"a", info)  # type: ignore[arg-type]
    return round(verdict.wait, 3), verdict.growing


def test_rule_7_two_looks_that_see_the_same() -> None:
    clock = Clock()
    settling = clock.settling()
    assert look(settling, Info()) == (5, False)
    clock.go(3)
    assert look(settling, Info()) == (2, False)
    assert look(settling, Info(st_size=2)) == (5, False)
    clock.go(4.9)
    assert look(settling, Info(st_size=2)) == (0.1, False)
    clock.go(0.2)
    assert look(settling, Info(st_size=2)) == (0, False)
    assert len(settling) == 0
    for changed in (Info(st_mtime_ns=9), Info(st_ino=9)):
        assert look(settling, Info())[0] == 5
        clock.go(5.1)
        assert look(settling, changed)[0] == 5
        clock.go(5.1)
        assert look(settling, changed)[0] == 0


def test_rule_15_a_file_that_grows_for_ever_is_taken_in_now_and_then() -> None:
    clock = Clock()
    settling = clock.settling(longest=12)
    taken = []
    for second in range(40):
        wait, growing = look(settling, Info(st_size=second))
        assert wait <= 5
        if not wait:
            taken.append((second, growing))
        clock.go(1)
    assert taken == [(12, True), (24, True), (36, True)]
    clock.go(5)
    assert look(settling, Info(st_size=39)) == (0, False)


def test_a_change_long_ago_needs_no_second_look_where_the_clock_is_ours() -> None:
    clock = Clock()

    def changed(ago: float, written: float | None = None) -> Info:
        at = int((clock.wall - ago) * 1e9)
        return Info(st_ctime_ns=at, st_mtime_ns=at if written is None else int((clock.wall - written) * 1e9))

    assert look(clock.settling(trust_clock=True), changed(6)) == (0, False)
    assert look(clock.settling(trust_clock=True), changed(2)) == (3, False)
    assert look(clock.settling(trust_clock=False), changed(6)) == (5, False)
    assert look(clock.settling(trust_clock=True), changed(2, written=10**6)) == (3, False), "copied with its time"
    assert look(clock.settling(trust_clock=True), changed(10**6, written=2)) == (3, False), "a file system without ctime"
    assert look(clock.settling(trust_clock=True), changed(6, written=-(10**6))) == (0, False), "an mtime to come"


def test_a_clock_that_is_set_back_or_forward_is_not_relied_on() -> None:
    clock = Clock()
    settling = clock.settling(trust_clock=True)
    young = Info(st_ctime_ns=int((clock.wall - 1) * 1e9), st_mtime_ns=1)
    assert look(settling, young) == (4, False)
    clock.wall += 3600
    assert look(settling, young) == (5, False), "an hour forward makes nothing older"
    clock.go(5.1)
    assert look(settling, young) == (0, False), "two looks do"
    clock.wall -= 7200
    assert look(settling, young) == (5, False), "changed in the future"
    clock.go(5.1)
    assert look(settling, young) == (0, False)


def test_what_is_never_asked_about_again_is_forgotten() -> None:
    clock = Clock()
    settling = clock.settling()
    look(settling, Info())
    clock.go(4000)
    settling.begin()
    assert len(settling) == 0


# --- with files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drive(tmp_path: Path, catalog: Catalog, pool: ParsePool) -> Path:
    (tmp_path / "drive").mkdir()
    scan(catalog, [str(tmp_path / "drive")], pool=pool, plugins="x")
    return tmp_path / "drive"


Look = Callable[..., Rescan]


@pytest.fixture
def see(catalog: Catalog, drive: Path, pool: ParsePool, clock: Clock) -> Look:
    settling = clock.settling(longest=12)

    def run(*names: str, go: float = 0) -> Rescan:
        clock.go(go)
        parts = [Part(os.fsencode(name), False) for name in names] or [Part(b"")]
        return rescan(catalog, str(drive), parts, pool=pool, settling=settling, plugins="x")

    return run


def states(catalog: Catalog) -> dict[str, str]:
    return {model.path: model.state for model in catalog.models()}


def only(catalog: Catalog) -> Model:
    (model,) = catalog.models()
    return model


def test_rule_7_a_file_is_taken_in_once_it_stands_still(catalog: Catalog, drive: Path, see: Look) -> None:
    data = safetensors(drive.parent / "whole.safetensors", {"w": (100,)}).read_bytes()
    path = drive / "sub" / "a.safetensors"
    path.parent.mkdir()
    for end in range(100, len(data), 150):
        path.write_bytes(data[:end])
        assert see("sub", go=2).unsettled == {b"sub": 5}
        assert catalog.models() == []
    path.write_bytes(data)
    assert see("sub").unsettled == {b"sub": 5}
    assert see("sub", go=3).unsettled == {b"sub": 2}
    assert catalog.models() == []
    done = see("sub", go=2.1)
    assert (done.unsettled, done.summary.new, states(catalog)) == ({}, 1, {"sub/a.safetensors": "ready"})


def test_rule_8_a_file_that_grows_for_long_is_incomplete_not_invalid(catalog: Catalog, drive: Path, see: Look) -> None:
    data = safetensors(drive.parent / "whole.safetensors", {"w": (1000,)}).read_bytes()
    path = drive / "a.safetensors"
    seen = []
    for end in range(500, len(data), 100):
        path.write_bytes(data[:end])
        os.utime(path, (5, 5))  # whatever the server's clock says
        see("", go=1)
        seen += [model.state for model in catalog.models()]
    assert seen
    assert set(seen) == {"incomplete"}
    one = only(catalog)
    catalog.set_tags(one, {"mine": "yes"})
    assert see("", go=1).unsettled
    assert see("", go=5).unsettled == {}
    assert only(catalog).state == "invalid", "it has ended, and too early"
    path.write_bytes(data)
    see("")
    see("", go=5.1)
    after = only(catalog)
    assert (after.id, after.state, catalog.tags(after)) == (one.id, "ready", {"mine": "yes"})


def test_rule_7_a_known_file_that_changes_stays_what_it_was(catalog: Catalog, drive: Path, see: Look) -> None:
    path = safetensors(drive / "a.safetensors", {"w": (100,)})
    safetensors(drive / "b.safetensors", {"v": (3,)})
    see()
    see(go=6)
    before = {model.name: model for model in catalog.models()}
    whole = safetensors(drive.parent / "other.safetensors", {"w": (200,)}).read_bytes()
    path.write_bytes(whole[:300])
    assert see("").unsettled == {b"": 5}
    safetensors(drive / "c.safetensors", {"u": (4,)})
    see("", go=2)
    path.write_bytes(whole[:600])
    found = see("", go=5.1)
    assert found.unsettled
    models = {model.name: model for model in catalog.models()}
    assert (models["a"].state, models["a"].parameters, models["a"].version) == ("ready", 100, 1)
    assert models["c"].state == "ready", "what is beside it does not wait for it"
    path.write_bytes(whole)
    see("", go=1)
    see("", go=5.1)
    after = {model.name: model for model in catalog.models()}
    assert (after["a"].id, after["a"].parameters, after["a"].version) == (before["a"].id, 200, 2)
    assert after["b"].id == before["b"].id


def test_rule_7_partial_names_are_never_taken_in(catalog: Catalog, drive: Path, see: Look) -> None:
    data = safetensors(drive.parent / "whole.safetensors").read_bytes()
    for name in ("a.safetensors.part", ".b.safetensors.a1B2c3", "c.crdownload", ".modelhub-1.safetensors", "sha256-ab-partial-0"):
        (drive / name).write_bytes(data)
    assert see().unsettled == {}
    assert see(go=60).unsettled == {}
    assert catalog.models() == []
    (drive / "a.safetensors.part").rename(drive / "a.safetensors")
    assert see("").unsettled == {b"": 5}
    see("", go=5.1)
    assert states(catalog) == {"a.safetensors": "ready"}


def test_rule_12_a_moved_file_does_not_wait(catalog: Catalog, drive: Path, see: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors")
    see()
    see(go=6)
    before = only(catalog)
    (drive / "two").mkdir()
    path.rename(drive / "two" / "b.safetensors")
    found = see("two")
    assert (found.unsettled, found.summary.changed, found.summary.gone) == ({}, 1, 0)
    assert (only(catalog).id, only(catalog).path) == (before.id, "two/b.safetensors")
    assert see("one").summary.gone == 0


def test_rule_9_a_sharded_model_waits_for_its_shards(catalog: Catalog, drive: Path, see: Look) -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    model = drive / "model"
    model.mkdir()
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    shards = [safetensors(drive.parent / name, {f"w{number}": (100,)}).read_bytes() for number, name in enumerate(names)]
    (model / names[0]).write_bytes(shards[0])
    see("model")
    see("model", go=5.1)
    one = only(catalog)
    assert one.state == "incomplete"
    (model / names[1]).write_bytes(shards[1])
    (model / names[2]).write_bytes(shards[2][:200])
    see("model")
    (model / names[2]).write_bytes(shards[2][:300])
    assert see("model", go=5.1).unsettled
    assert (only(catalog).state, only(catalog).id) == ("incomplete", one.id)
    (model / names[2]).write_bytes(shards[2])
    see("model")
    assert see("model", go=5.1).unsettled == {}
    done = only(catalog)
    assert (done.id, done.state, done.version, done.parameters) == (one.id, "ready", 1, 300)
    # Two shards are replaced, one after the other: it stays what it was until both are there.
    for number in (0, 1):
        safetensors(model / names[number], {f"w{number}": (150,)})
        see("model", go=1)
    (model / names[1]).write_bytes((model / names[1]).read_bytes()[:400])
    see("model", go=4.5)
    assert (only(catalog).state, only(catalog).version, only(catalog).parameters) == ("ready", 1, 300)
    safetensors(model / names[1], {"w1": (150,)})
    see("model")
    see("model", go=5.1)
    assert (only(catalog).id, only(catalog).state, only(catalog).version, only(catalog).parameters) == (one.id, "ready", 2, 400)


def test_rule_9_a_shard_that_is_being_filled_is_not_there_yet(catalog: Catalog, drive: Path, see: Look) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    for number, name in enumerate(names):
        safetensors(drive / name, {f"w{number}": (1000,)}, fill=0)  # made in full length, then filled
    (drive / "model.safetensors.index.json").write_text(json.dumps(index))
    see("")
    for fill in (1, 2, 3):
        safetensors(drive / names[1], {"w1": (1000,)}, fill=fill)
        see("", go=3)
        assert {model.state for model in catalog.models()} <= {"incomplete"}
    one = only(catalog)
    assert see("", go=5.1).unsettled == {}
    assert (only(catalog).state, only(catalog).id, only(catalog).version, only(catalog).reason) == ("ready", one.id, 1, "")


def test_a_file_of_a_directory_that_changes_does_not_break_the_directory(catalog: Catalog, drive: Path, see: Look) -> None:
    model = drive / "llama"
    safetensors(model / "model.safetensors", {"w": (100,)})
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    see()
    see(go=6)
    before = only(catalog)
    assert before.path == "llama"
    (model / "config.json").write_text("{")
    (model / "README.md").write_text("new")
    os.utime(model / "README.md", (5, 5))
    see("llama")
    (model / "config.json").write_text('{"model_type": "lla')
    found = see("llama", go=5.1)
    assert found.summary.gone == 0
    assert states(catalog) == {"llama": "ready"}
    (model / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    see("llama")
    see("llama", go=5.1)
    assert (only(catalog).id, only(catalog).path, only(catalog).state) == (before.id, "llama", "ready")


def test_a_file_that_goes_while_it_is_waited_for(catalog: Catalog, drive: Path, see: Look) -> None:
    path = safetensors(drive / "a.safetensors")
    see("")
    path.unlink()
    assert see("", go=1).unsettled == {}
    assert catalog.models() == []
