"""A moved checkpoint keeps its id and what people wrote about it, in whatever order a daemon comes to see the two places."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from modelhub import rescan as rescanning
from modelhub.catalog import Catalog
from modelhub.catalog.database import Reader
from modelhub.model import Model
from modelhub.reconcile import Reconciliation
from modelhub.rescan import Part, Rescan, rescan
from modelhub.scan import scan
from modelhub.settle import Settling
from modelhub.workers import ParsePool, Result, Task

from tests.hub.drives import safetensors
from tests.storm import checkpoint, truth

Look = Callable[..., Rescan]


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def look(catalog: Catalog, pool: ParsePool, drive: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Scans all of the drive, or the own entries of some directories of it."""
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.0)
    scan(catalog, [str(drive)], pool=pool, plugins="x")

    def run(*names: str) -> Rescan:
        parts = [Part(os.fsencode(name), False) for name in names] or [Part(b"")]
        return rescan(catalog, str(drive), parts, pool=pool, plugins="x")

    return run


def at(catalog: Catalog, path: Path) -> Model:
    (model,) = catalog.at(str(path))
    return model


def there(catalog: Catalog) -> dict[str, str]:
    """id -> path of what is ready."""
    return {str(model.id): model.path for model in catalog.models(where=["state=ready"])}


def annotate(catalog: Catalog, model: Model) -> None:
    catalog.set_tags(model, {"team": "vision"})
    catalog.set_alias("best", model)
    catalog.add_note(model, "the good one")


def is_annotated(catalog: Catalog, model: Model) -> bool:
    written = catalog.tags(model), catalog.notes(model), catalog.aliases_of(model)
    return written == ({"team": "vision"}, ("the good one",), ("best",))


# --- one move, two looks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_rule_12_either_place_is_seen_first(catalog: Catalog, drive: Path, look: Look, order: tuple[str, str]) -> None:
    path = safetensors(drive / "one" / "a.safetensors")
    (drive / "two").mkdir()
    look()
    before = at(catalog, path)
    annotate(catalog, before)
    path.rename(drive / "two" / "b.safetensors")
    for name in order:
        look(name)
    assert there(catalog) == {before.id: "two/b.safetensors"}
    assert is_annotated(catalog, at(catalog, drive / "two" / "b.safetensors"))
    assert len(catalog.models()) == 1


@pytest.mark.parametrize("first", ["one", "two"])
def test_rule_12_an_exchange_seen_from_one_side(catalog: Catalog, drive: Path, look: Look, first: str) -> None:
    one, two = safetensors(drive / "one" / "a.safetensors", fill=1), safetensors(drive / "two" / "b.safetensors", fill=2)
    look()
    ids = at(catalog, one).id, at(catalog, two).id
    annotate(catalog, at(catalog, one))
    one.rename(drive / "x")
    two.rename(one)
    (drive / "x").rename(two)
    look(first)
    assert there(catalog) == {ids[0]: "two/b.safetensors", ids[1]: "one/a.safetensors"}
    assert is_annotated(catalog, at(catalog, two))


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_rule_12_a_chain_of_renames_in_any_order(catalog: Catalog, drive: Path, look: Look, order: str) -> None:
    paths = {name: drive / name / "model.safetensors" for name in "abc"}
    safetensors(paths["a"], fill=1)
    safetensors(paths["b"], fill=2)
    (drive / "c").mkdir()
    look()
    a, b = at(catalog, paths["a"]).id, at(catalog, paths["b"]).id
    annotate(catalog, at(catalog, paths["b"]))
    paths["b"].rename(paths["c"])
    paths["a"].rename(paths["b"])
    for name in order:
        look(name)
    assert there(catalog) == {a: "b/model.safetensors", b: "c/model.safetensors"}
    assert is_annotated(catalog, at(catalog, paths["c"]))


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_rule_12_what_takes_the_place_of_a_moved_model_is_another(
    catalog: Catalog, drive: Path, look: Look, order: tuple[str, str]
) -> None:
    path = safetensors(drive / "one" / "a.safetensors", {"w": (5,)})
    (drive / "two").mkdir()
    look()
    before = at(catalog, path)
    catalog.set_file_digest(str(path), b"\1" * 32, path.stat())
    annotate(catalog, before)
    path.rename(drive / "two" / "a.safetensors")
    safetensors(path, {"w": (7,)})
    look(order[0])
    if order[0] == "one":  # nobody can know better yet
        assert (at(catalog, path).id, at(catalog, path).version) == (before.id, 2)
        catalog.set_alias("newest", at(catalog, path))
    look(order[1])
    moved, new = at(catalog, drive / "two" / "a.safetensors"), at(catalog, path)
    assert (moved.id, moved.version, moved.parameters, moved.digest) == (before.id, 1, 5, "sha256:" + "01" * 32)
    assert is_annotated(catalog, moved)
    assert (new.id != before.id, new.version, new.parameters, catalog.versions(new)) == (True, 1, 7, [])
    if order[0] == "one":
        assert catalog.aliases_of(new) == ("newest",)
    assert catalog.check() == []
    look()
    assert there(catalog) == {moved.id: "two/a.safetensors", new.id: "one/a.safetensors"}


def test_rule_6_what_people_wrote_of_a_missing_model_stays(catalog: Catalog, drive: Path, look: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors", {"w": (3,)})
    safetensors(drive / "one" / "b.safetensors", {"w": (4,)})
    look()
    model = at(catalog, path)
    annotate(catalog, model)
    path.unlink()
    for _ in range(3):
        look()
        (missing,) = catalog.models(where=["state=missing"])
        assert (missing.id, is_annotated(catalog, missing)) == (model.id, True)
    safetensors(path, {"w": (3,)})
    look()
    back = at(catalog, path)
    assert (back.id, is_annotated(catalog, back)) == (model.id, True)


def test_rule_13_a_replaced_file_is_a_new_version(catalog: Catalog, drive: Path, look: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors", {"w": (5,)})
    look()
    before = at(catalog, path)
    annotate(catalog, before)
    for size in (6, 7, 8):
        os.replace(safetensors(drive / "one" / "new.tmp", {"w": (size,)}), path)
        look("one")
    after = at(catalog, path)
    assert (after.id, after.version, after.parameters) == (before.id, 4, 8)
    assert [version["version"] for version in catalog.versions(after)] == [3, 2, 1]
    assert catalog.aliases_of(after) == ("best (stale)",)
    assert len(catalog.models()) == 1


def test_rule_12_a_model_renamed_over_another_is_itself(catalog: Catalog, drive: Path, look: Look) -> None:
    a, b = safetensors(drive / "one" / "a.safetensors", fill=1), safetensors(drive / "two" / "b.safetensors", fill=2)
    look()
    ids = at(catalog, a).id, at(catalog, b).id
    os.replace(a, b)
    look("two")
    assert there(catalog) == {ids[0]: "two/b.safetensors"}
    (gone,) = catalog.models(where=["state=missing"])
    assert (gone.id, gone.files) == (ids[1], ("two/b.safetensors",))
    assert not catalog.unchanged(gone)


def test_rule_12_a_directory_of_many_is_renamed(catalog: Catalog, drive: Path, look: Look) -> None:
    for number in range(300):
        safetensors(drive / "old" / str(number % 7) / f"{number}.safetensors", fill=number % 250)
    hugging = drive / "old" / "llama"
    safetensors(hugging / "model.safetensors", {"w": (9,)})
    (hugging / "config.json").write_text('{"model_type": "llama"}')
    look()
    before = {model.path.partition("/")[2]: model.id for model in catalog.models()}
    (drive / "old").rename(drive / "new")
    found = look("")
    assert (found.summary.new, found.summary.gone, found.suspect) == (0, 0, False)
    assert {model.path: model.id for model in catalog.models()} == {f"new/{path}": id for path, id in before.items()}


def test_rule_12_a_reused_inode_and_an_equal_copy_are_new(catalog: Catalog, drive: Path, look: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors", {"w": (5,)}, fill=1)
    look()
    before = at(catalog, path)
    (drive / "two").mkdir()
    path.rename(drive / "two" / "b.safetensors")
    safetensors(drive / "two" / "b.safetensors", {"w": (5,)}, fill=2)  # the same inode, size and header, but not the time
    os.utime(drive / "two" / "b.safetensors", ns=(5, 5))
    look("two", "one")
    assert at(catalog, drive / "two" / "b.safetensors").id != before.id
    shutil.copy2(drive / "two" / "b.safetensors", drive / "one" / "copy.safetensors")
    (drive / "two" / "b.safetensors").unlink()
    copied = at(catalog, drive / "two" / "b.safetensors").id
    look("one", "two")
    assert at(catalog, drive / "one" / "copy.safetensors").id not in (before.id, copied)


def test_hard_links_are_models_of_their_own_and_move_alone(catalog: Catalog, drive: Path, look: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors")
    look()
    os.link(path, drive / "one" / "b.safetensors")
    look("one")
    a, b = at(catalog, path), at(catalog, drive / "one" / "b.safetensors")
    assert a.id != b.id
    assert catalog.contents(a) == catalog.contents(b)
    (drive / "two").mkdir()
    path.rename(drive / "two" / "c.safetensors")
    look("two")
    assert there(catalog) == {a.id: "two/c.safetensors", b.id: "one/b.safetensors"}


def test_hard_links_in_a_directory_that_is_renamed_keep_their_names(catalog: Catalog, drive: Path, look: Look) -> None:
    path = safetensors(drive / "one" / "a.safetensors")
    os.link(path, drive / "one" / "b.safetensors")
    os.link(path, drive / "one" / "c.safetensors")
    look()
    ids = {model.name: str(model.id) for model in catalog.models()}
    (drive / "one").rename(drive / "two")
    look("")
    assert {model.name: model.id for model in catalog.models()} == ids
    assert {model.state for model in catalog.models()} == {"ready"}


def test_rule_12_a_place_that_another_file_takes_between_the_look_and_the_read(
    catalog: Catalog, drive: Path, pool: ParsePool, look: Look
) -> None:
    path = safetensors(drive / "one" / "a.safetensors", {"w": (3,)})
    look()
    before = at(catalog, path)
    (drive / "two").mkdir()
    moved = path.rename(drive / "two" / "b.safetensors")

    class Late:
        def inspect(self, tasks: Iterable[Task]) -> Iterator[Result]:
            moved.rename(drive / "two" / "c.safetensors")
            safetensors(moved, {"other": (5,)})
            return pool.inspect(tasks)

    found = rescan(catalog, str(drive), [Part(b"two", False)], pool=Late(), plugins="x")
    assert list(found.unsettled) == [b"two"]
    look("two")
    assert at(catalog, drive / "two" / "c.safetensors").id == before.id
    assert at(catalog, moved).parameters == 5
    assert len(catalog.models()) == 2


@pytest.mark.parametrize("settles", [False, True], ids=["as it is", "once it stands still"])
def test_rule_12_a_model_that_comes_to_a_directory_while_that_is_looked_at(
    catalog: Catalog, drive: Path, pool: ParsePool, look: Look, monkeypatch: pytest.MonkeyPatch, settles: bool
) -> None:
    """A directory that something went from is listed twice: what is moved there in between is known all the same, and what is
    written there in between stands still first."""
    moved = safetensors(drive / "one" / "a.safetensors", {"w": (3,)})
    for name in "bcd":
        safetensors(drive / "two" / f"{name}.safetensors", {name: (4,)})
    look()
    before = at(catalog, moved)
    annotate(catalog, before)
    (drive / "two" / "b.safetensors").unlink()
    prepare = Reconciliation.prepare

    def late(self: Reconciliation, reader: Reader, gone: Sequence[bytes]) -> set[bytes]:
        if moved.exists():
            moved.rename(drive / "two" / "a.safetensors")
            safetensors(drive / "two" / "new.safetensors", {"new": (7,)})
        return prepare(self, reader, gone)

    monkeypatch.setattr(Reconciliation, "prepare", late)
    settling = Settling(3600.0, longest=7200.0) if settles else None
    found = rescan(catalog, str(drive), [Part(b"")], pool=pool, plugins="x", settling=settling)
    now = at(catalog, drive / "two" / "a.safetensors")
    assert (now.id, is_annotated(catalog, now)) == (before.id, True)
    assert len(catalog.at(str(drive / "two" / "new.safetensors"))) == (0 if settles else 1)
    assert list(found.unsettled) == ([b"two"] if settles else [])
    assert catalog.check() == []


# --- storms -------------------------------------------------------------------------------------------------------


@dataclass
class Thing:
    """A file, whatever its name is. ``id``: what the catalog called it when it had seen it as it is now."""

    numbers: int
    id: str = ""


@dataclass
class World:
    """A drive, and what is true of it."""

    root: Path
    dice: random.Random
    time: int = 10**18
    files: dict[str, Thing] = field(default_factory=dict)
    first: dict[str, Thing] = field(default_factory=dict)

    def place(self) -> str:
        return f"{self.dice.choice('abcd')}/{self.dice.choice(['', 'x/', 'y/'])}{self.dice.choice('123')}.safetensors"

    def write(self, name: str, numbers: int) -> None:
        path = safetensors(self.root / name, {"w": (numbers,)}, fill=self.dice.randrange(250))
        self.time += self.dice.randrange(1, 10**9)
        os.utime(path, ns=(self.time, self.time))

    def act(self) -> None:
        name, other = self.place(), self.place()
        thing = self.files.get(name)
        what = self.dice.choice(
            ["create"] * 3 + ["replace", "rewrite", "touch", "delete", "directory"] + ["move"] * 6 + ["swap"] * 2
        )
        numbers = self.dice.choice([3, 4, 5])
        if what == "create" and thing is None:
            self.write(name, numbers)
            self.files[name] = Thing(numbers)
        elif what == "replace" and thing is not None:
            self.write("new.tmp", numbers)
            os.replace(self.root / "new.tmp", self.root / name)
            self.files[name] = Thing(numbers)
        elif what == "rewrite" and thing is not None:
            self.write(name, numbers)
            thing.numbers, thing.id = numbers, ""
            self.first = {id: first for id, first in self.first.items() if first is not thing}
        elif what == "touch" and thing is not None:
            self.time += 1
            os.utime(self.root / name, ns=(self.time, self.time))
            thing.id = ""
        elif what == "delete" and thing is not None:
            (self.root / name).unlink()
            del self.files[name]
        elif what == "move" and thing is not None and name != other:
            (self.root / other).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / name, self.root / other)
            self.files[other] = self.files.pop(name)
        elif what == "swap" and thing is not None and other in self.files and name != other:
            for source, target in ((name, "swap.tmp"), (other, name), ("swap.tmp", other)):
                os.replace(self.root / source, self.root / target)
            self.files[name], self.files[other] = self.files[other], self.files[name]
        elif what == "directory":
            one, two = self.dice.sample("abcd", 2)
            if (self.root / one).exists() and not (self.root / two).exists():
                (self.root / one).rename(self.root / two)
                self.files = {two + path[1:] if path[0] == one else path: thing for path, thing in self.files.items()}

    def observe(self, catalog: Catalog) -> None:
        """Remember what the catalog calls what it has seen as it is."""
        for model in catalog.models(where=["state=ready"]):
            thing = self.files.get(model.path)
            if thing is not None and catalog.unchanged(model):
                thing.id = str(model.id)
                holder = self.first.get(thing.id)
                if holder is None or holder not in self.files.values():
                    self.first[thing.id] = thing

    def check(self, catalog: Catalog) -> None:
        models = {model.path: model for model in catalog.models(where=["state=ready"])}
        assert {path: model.parameters for path, model in models.items()} == {
            path: thing.numbers for path, thing in self.files.items()
        }
        for path, thing in self.files.items():
            if thing.id and self.first.get(thing.id) is thing:
                assert models[path].id == thing.id, f"{path} lost its id"


@pytest.mark.parametrize("seed", range(24))
def test_rule_12_no_move_of_a_storm_loses_an_id(
    catalog: Catalog, pool: ParsePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.0)
    root = tmp_path / "drive"
    root.mkdir()
    scan(catalog, [str(root)], pool=pool, plugins="x")
    world = World(root, random.Random(seed))
    for _ in range(12):
        for _ in range(world.dice.randrange(1, 6)):
            world.act()
        known = ["", *"abcd", *(f"{a}/{b}" for a in "abcd" for b in "xy")]
        some = world.dice.sample(known, world.dice.randrange(0, 6))
        if some:
            rescan(catalog, str(root), [Part(os.fsencode(name), False) for name in some], pool=pool, plugins="x")
        world.observe(catalog)
    for _ in range(2):  # the second look, where much was gone at once
        rescan(catalog, str(root), [Part(b"")], pool=pool, plugins="x")
    world.check(catalog)
    assert catalog.check() == []


STORM = """
import os, random, sys, time
from pathlib import Path
from tests.hub.drives import safetensors
root, number = Path(sys.argv[1]), int(sys.argv[2])
dice, mine, made = random.Random(number), {}, 0
end = time.monotonic() + 4
def place():
    return root / dice.choice('abcdef') / f"{number}-{dice.randrange(15)}.safetensors"
while time.monotonic() < end:
    path, other = place(), place()
    what = dice.random()
    if path not in mine and what < 0.4:
        made += 1
        name = f"u{number}x{made}"
        scratch = root / f"{name}.part"
        data = safetensors(scratch, {name: (40,)}).read_bytes()
        if what < 0.2:
            os.replace(scratch, path)
        else:  # grown in pieces
            with open(path, "wb") as file:
                for start in range(0, len(data), 60):
                    file.write(data[start:start + 60])
                    file.flush()
                    time.sleep(dice.random() / 100)
            scratch.unlink()
        mine[path] = name
    elif path in mine and what < 0.8 and other not in mine:
        os.replace(path, other)
        mine[other] = mine.pop(path)
    elif path in mine and what < 0.85:
        path.unlink()
        del mine[path]
    elif path in mine and what < 0.9:
        made += 1
        mine[path] = f"u{number}x{made}"
        os.replace(safetensors(root / f"{mine[path]}.part", {mine[path]: (50,)}), path)
    time.sleep(dice.random() / 50)
"""


def test_a_storm_by_several_processes_while_it_is_scanned(
    catalog: Catalog, pool: ParsePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.0)
    root = tmp_path / "drive"
    for name in "abcdef":
        (root / name).mkdir(parents=True)
    scan(catalog, [str(root)], pool=pool, plugins="x")
    dice, settling = random.Random(5), Settling(0.2, longest=1.0, trust_clock=True)
    first: dict[str, str] = {}
    owners: dict[str, str] = {}

    def observe() -> dict[str, str]:
        """path -> the name of the tensor there, which no other file ever has."""
        seen = {}
        for model in catalog.models(where=["state=ready"]):
            (tensor,) = model.table().tensors
            seen[model.path] = tensor.name
            if owners.setdefault(str(model.id), tensor.name) == tensor.name:
                first.setdefault(tensor.name, str(model.id))
        return seen

    words = [sys.executable, "-c", STORM, str(root)]
    storm = [subprocess.Popen([*words, str(number)], cwd=Path(__file__).parents[2]) for number in range(4)]
    while any(process.poll() is None for process in storm):
        some = dice.sample("abcdef", dice.randrange(1, 5))
        parts = [Part(os.fsencode(name), False) for name in some]
        rescan(catalog, str(root), parts, pool=pool, settling=settling, plugins="x")
        observe()
    assert [process.returncode for process in storm] == [0] * 4
    for _ in range(3):
        time.sleep(0.3)
        found = rescan(catalog, str(root), [Part(b"")], pool=pool, settling=settling, plugins="x")
    assert found.unsettled == {}
    truth = {}
    for path in root.rglob("*.safetensors"):
        with open(path, "rb") as file:
            (truth[str(path.relative_to(root))],) = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert observe() == truth
    now = {model.path: model.id for model in catalog.models(where=["state=ready"])}
    assert len(first) > 30
    lost = {path: name for path, name in truth.items() if name in first and now[path] != first[name]}
    assert lost == {}
    assert catalog.check() == []


def test_a_storm_of_renames_while_it_is_scanned(
    catalog: Catalog, pool: ParsePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but moves, hundreds a second, of files and of directories: every model keeps its id, whatever a scan saw of it.
    ``MODELHUB_RENAMES`` makes it longer (seconds)."""
    monkeypatch.setattr(rescanning, "SECOND_LOOK", 0.0)
    root = tmp_path / "drive"
    for number in range(300):
        path = root / f"d{number % 40:02}" / f"p{number % 3}-{number}x.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(checkpoint(f"u{number}"))
    scan(catalog, [str(root)], pool=pool, plugins="x")
    made = {uid: where for where, (_, uid) in truth(root).items()}
    where = {model.path: model.id for model in catalog.models(where=["state=ready"])}
    ids = {uid: where[path] for uid, path in made.items()}
    dice, settling = random.Random(3), Settling(0.1, longest=0.6, trust_clock=True)
    words = [sys.executable, "-m", "tests.storm", str(root)]
    seconds = os.environ.get("MODELHUB_RENAMES", "3")
    storm = [subprocess.Popen([*words, str(number), seconds], cwd=Path(__file__).parents[2]) for number in range(3)]
    while any(process.poll() is None for process in storm):
        some = dice.sample(sorted(os.listdir(root)), dice.randrange(1, 12))
        parts = [Part(os.fsencode(name), False) for name in some] if dice.random() < 0.75 else [Part(b"")]
        rescan(catalog, str(root), parts, pool=pool, settling=settling, plugins="x")
    assert [process.returncode for process in storm] == [0] * 3
    found = rescan(catalog, str(root), [Part(b"")], pool=pool, settling=settling, plugins="x")
    while found.unsettled:
        time.sleep(max(found.unsettled.values()))
        found = rescan(catalog, str(root), [Part(b"")], pool=pool, settling=settling, plugins="x")
    now = {model.path: model.id for model in catalog.models(where=["state=ready"])}
    assert {uid: now.get(path) for path, (_, uid) in truth(root).items()} == ids
    assert len(now) == 300
    assert catalog.check() == []
