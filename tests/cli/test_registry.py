"""What people wrote of models, and how these came to be: through moves, absent drives, rescans and replaced content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Modelhub
from tests.hub.drives import safetensors
from tests.watching import mount, unmount


class Registry:
    """A drive with a model, one made of it (in its second version), and all that can be written of that."""

    def __init__(self, run: Modelhub, quick: Modelhub, drive: Path) -> None:
        self.run, self.quick, self.drive = run, quick, drive
        self.base = safetensors(drive / "base.safetensors", {"w": (64, 64), "b": (64,)}, fill=61)
        self.out = drive / "out" / "small.safetensors"
        self.out.parent.mkdir()
        safetensors(self.out, {"w": (64, 64), "b": (64,)}, fill=60, dtype="F16")
        quick("scan", drive)
        quick("alias", "small@first", self.out)
        quick("convert", self.base, "--to", "safetensors:bf16", "-o", self.out, "--force")
        quick("alias", "small@prod", self.out)
        quick("tag", self.out, "team=search")
        for note in ("evaluated: 0.81", "läuft\nauch hier"):
            quick("note", self.out, note)
        self.id = self.show("small")["id"]
        self.before = self.written()

    def show(self, model: object) -> dict[str, Any]:
        found: dict[str, Any] = self.quick("show", model, "--json", "--versions", "--lineage").json
        return found

    def written(self) -> dict[str, Any]:
        """All that must not be lost."""
        shown = self.show("small@prod")
        assert shown["id"] == self.id
        for row in shown["versions"]:
            del row["indexed"]
        return {
            **{name: shown[name] for name in ("aliases", "tags", "notes", "versions")},
            "made of": [(step["parent"], step["recipe"], step["digest"]) for step in shown["lineage"]],
            "graph": {
                (shown["graph"]["nodes"][e["parent"]]["name"], e["child"], e["recipe"], e["stale"])
                for e in shown["graph"]["edges"]
            },
        }

    def where(self) -> tuple[str, str]:
        shown = self.show(self.id)
        return shown["state"], os.path.join(shown["root"], shown["path"])


@pytest.fixture
def registry(modelhub: Modelhub, quick: Modelhub, tmp_path: Path) -> Registry:
    (tmp_path / "drive").mkdir()
    return Registry(modelhub, quick, tmp_path / "drive")


def test_moves_keep_everything(registry: Registry, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    safetensors(other / "stranger.safetensors", fill=3)
    registry.quick("scan", other)
    for place in (
        registry.out.with_name("renamed.safetensors"),
        registry.drive / "elsewhere" / "deep" / "renamed.safetensors",
        other / "small.safetensors",
        registry.drive / "elsewhere" / "deep" / "renamed.safetensors",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        registry.out.rename(place)
        registry.out = place
        registry.quick("scan")
        assert registry.where() == ("ready", str(place))
        assert registry.written() == registry.before
    registry.drive.rename(tmp_path / "moved")
    registry.run("scan", tmp_path / "moved")
    assert registry.where() == ("ready", str(tmp_path / "moved" / "elsewhere" / "deep" / "renamed.safetensors"))
    assert registry.written() == registry.before


def test_rescans_and_a_new_mtime_change_nothing(registry: Registry) -> None:
    assert registry.before["aliases"] == ["small@first (stale)", "small@prod"]
    assert registry.before["tags"] == {"team": "search"}
    assert registry.before["notes"] == ["evaluated: 0.81", "läuft\nauch hier"]
    assert [
        (row["version"], row["current"], row["precision"], row["aliases"], row["replaced"] is None)
        for row in registry.before["versions"]
    ] == [(2, True, "BF16", ["small@prod"], True), (1, False, "F16", ["small@first"], False)]
    assert registry.before["graph"] == {("base", 0, "bf16", False)}
    for _ in range(2):
        registry.quick("scan")
        os.utime(registry.out, (1_700_000_000, 1_700_000_000))
        os.utime(registry.base)
    registry.quick("scan")
    after = registry.written()
    for one in (after, registry.before):
        for row in one["versions"]:  # digests count for the mtime that they were made under
            del row["modified"], row["digest"]
    assert after == registry.before


def test_a_drive_that_is_away(modelhub: Modelhub, quick: Modelhub, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("there is no mkfs.ext4 here to make a drive with")
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", image], check=True)
    mount("-o", "loop", image, drive)
    try:
        registry = Registry(modelhub, quick, drive)
        unmount(drive)
        quick("scan")
        assert registry.where()[0] == "offline"
        assert registry.written() == registry.before
        modelhub("note", registry.id, "said while it was away")
        mount("-o", "loop", image, drive)
        quick("scan")
        assert registry.where() == ("ready", str(registry.out))
        (*notes, last) = registry.written()["notes"]
        assert (notes, last) == (registry.before["notes"], "said while it was away")
    finally:
        unmount(drive)


def test_a_missing_model_keeps_everything_and_has_it_when_it_is_back(registry: Registry, tmp_path: Path) -> None:
    registry.out.rename(tmp_path / "away")
    registry.quick("scan")
    assert registry.where()[0] == "missing"
    assert registry.written() == registry.before
    assert "its content is missing" in registry.run("alias").stdout
    (tmp_path / "away").rename(registry.out)
    registry.quick("scan")
    assert registry.where()[0] == "ready"
    assert registry.written() == registry.before


def test_replaced_content_keeps_what_people_wrote_and_says_that_it_was_replaced(registry: Registry) -> None:
    safetensors(registry.out, {"other": (8, 8)}, fill=9)
    registry.quick("scan")
    after = registry.written()
    for name in ("tags", "notes"):
        assert after[name] == registry.before[name]
    assert after["aliases"] == ["small@first (stale)", "small@prod (stale)"]
    assert [(row["version"], row["aliases"]) for row in after["versions"]] == [(3, []), (2, ["small@prod"]), (1, ["small@first"])]
    assert (after["made of"], after["graph"]) == ([], set())  # nobody knows where this one comes from

    shown = registry.run("show", "small@prod", "--json")
    assert (shown.json["id"], shown.json["version"]) == (registry.id, 3)
    assert "modelhub: warning: small@prod is stale: its content was replaced on 20" in shown.stderr
    assert "this is version 3" in shown.stderr
    assert registry.quick("show", "small:3").stderr == ""
    assert "version 2 of small was replaced on 20" in registry.run("show", "small:2", status=3).stderr
    assert "small has no version 7; there is small:3" in registry.quick("show", "small:7", status=3).stderr
    rows = {row["alias"]: row for row in registry.quick("alias", "--json").json}
    assert (rows["small@prod"]["stale"], rows["small@prod"]["version"], rows["small@prod"]["now"]) == (True, 2, 3)
    assert "its content was replaced, version 3 stands there" in registry.run("alias").stdout
    assert "small@first (stale), small@prod (stale)" in registry.run("ls").stdout
    (row,) = [row for row in registry.quick("ls", "--json").json if row["id"] == registry.id]
    assert row["aliases"] == ["small@first (stale)", "small@prod (stale)"]
    # Given anew, it is good again.
    registry.run("alias", "small@prod", "small")
    assert registry.run("show", "small@prod").stderr == ""


def test_a_stale_alias_names_a_copy_of_what_it_pinned(registry: Registry) -> None:
    copy = shutil.copy(registry.out, registry.drive / "kept.safetensors")
    registry.quick("scan")
    registry.quick("verify", "small", "kept", "--level", "digest")
    safetensors(registry.out, {"other": (8, 8)}, fill=9)
    registry.quick("scan")
    assert f"what it pinned stands at {copy} as well" in registry.run("show", "small@prod").stderr
    assert f"the same bytes stand at {copy}" in registry.run("show", "small:2", status=3).stderr


def test_names_with_colons_and_several_of_a_name(quick: Modelhub, tmp_path: Path) -> None:
    for place, fill in (("x/llama", 1), ("y/llama", 2), ("phi:3", 3), ("a@b", 4), ("phi", 5), ("gemma:7b", 6)):
        safetensors(tmp_path / "drive" / f"{place}.safetensors", fill=fill)
    quick("scan", tmp_path / "drive")

    def path(reference: str) -> str:
        return str(quick("show", reference, "--json").json["path"])

    assert path("phi:3") == "phi:3.safetensors"
    assert path("gemma:7b") == path("gemma:7b:1") == "gemma:7b.safetensors"  # as Ollama names them
    assert path("phi:3:1") == "phi:3.safetensors"
    assert path("phi:1") == "phi.safetensors"
    assert path("a@b") == "a@b.safetensors"
    assert "could be 2 models" in quick("show", "llama:1", status=3).stderr
    safetensors(tmp_path / "drive" / "y" / "llama.safetensors", {"w": (2,)})
    quick("scan")
    assert path("llama:1") == "x/llama.safetensors"
    assert path("llama:2") == "y/llama.safetensors"
    for reference in ("llama:0", "llama:" + "9" * 5000, "llama:²", "nobody:1"):
        quick("show", reference, status=3)
    # An alias is no version, and a version is asked for before a name.
    quick("alias", "phi@3", tmp_path / "drive" / "phi:3.safetensors")
    assert path("phi@3") == "phi:3.safetensors"
    for fill in (6, 7):
        safetensors(tmp_path / "drive" / "phi.safetensors", {f"w{fill}": (2,)})
        quick("scan")
    assert path("phi:3") == "phi.safetensors"


def test_notes(modelhub: Modelhub, quick: Modelhub, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "drive" / "a.safetensors")
    assert modelhub("note", path).stdout == ""  # it is in no catalog, and stays out of it
    assert quick("ls", "-q").stdout == ""
    modelhub("note", path, "the first")
    modelhub("note", "a", "-", input="two\nlines\n")
    found = modelhub("note", "a", "the third", "--json").json
    assert [(note["note"], note["text"]) for note in found["notes"]] == [(1, "the first"), (2, "two\nlines"), (3, "the third")]
    assert all(note["created"].endswith("Z") for note in found["notes"])
    lines = modelhub("note", "a").lines
    assert [line[15:] for line in lines] == ["the first", "two", "lines", "the third"]
    assert [line[:1] for line in lines] == ["1", "2", " ", "3"]
    assert quick("ls", "-q", "--where", "note~third").stdout.strip() == found["id"]
    assert "no note 4" in quick("note", "a", "--rm", "1", "--rm", "4", status=3).stderr
    quick("note", "a", "--rm", "1", "--rm", "2")
    assert [note["text"] for note in quick("note", "a", "--json").json["notes"]] == ["the third"]
    for words in (["a", "  "], ["a", "text", "--rm", "1"], ["a", "--rm", "0"], []):
        quick("note", *words, status=2)
    quick("note", "nobody", "text", status=3)


def test_export_and_import_carry_notes_with_their_times(registry: Registry, tmp_path: Path) -> None:
    document = registry.run("export").json
    (model,) = document["models"]
    assert model["notes"] == ["evaluated: 0.81", "läuft\nauch hier"]
    model["noted"] = ["2024-05-01T10:00:00Z", "2024-05-02T10:00:00Z"]
    other = {"MODELHUB_HOME": str(tmp_path / "other")}
    registry.quick("scan", registry.drive, **other)
    for _ in range(2):
        registry.run("import", "-", input=json.dumps(document), **other)
    notes = registry.quick("note", "small", "--json", **other).json["notes"]
    assert notes == [
        {"note": 1, "text": "evaluated: 0.81", "created": "2024-05-01T10:00:00Z"},
        {"note": 2, "text": "läuft\nauch hier", "created": "2024-05-02T10:00:00Z"},
    ]
    # What earlier exports lack does no harm; what is no time does.
    del model["noted"]
    registry.run("import", "-", input=json.dumps(document), **other)
    model["noted"] = ["yesterday"]
    assert "damaged" in registry.run("import", "-", input=json.dumps(document), status=2, **other).stderr


def test_lineage_is_drawn_both_ways(registry: Registry) -> None:
    registry.quick("convert", "small", "--to", "pytorch", "-o", registry.drive / "small-pickled.pt")
    drawn = registry.run("show", "small", "--lineage").stdout
    above, below = drawn.split("made from\n")[1].split("made into\n")
    lines = above.splitlines()
    assert lines[0] == f"* {registry.id[:8]}  small  safetensors BF16"
    assert "└─" in lines[1]
    assert "  base  safetensors F32  (conversion with bf16 by safetensors " in lines[1]
    assert "  small-pickled  pytorch BF16  (conversion by pytorch " in below
    assert "`- " in registry.run("show", "small-pickled", "--lineage", PYTHONIOENCODING="ascii").stdout
    assert "worst" in above
    # The same as JSON; and what --json has had all along is there as before.
    shown = registry.run("show", "small", "--lineage", "--json").json
    assert [node["name"] for node in shown["graph"]["nodes"]] == ["small", "base", "small-pickled"]
    assert [node["node"] for node in shown["graph"]["nodes"]] == [0, 1, 2]
    assert {(edge["parent"], edge["child"]) for edge in shown["graph"]["edges"]} == {(1, 0), (0, 2)}
    assert shown["lineage"][0]["parent"] == shown["graph"]["nodes"][1]["id"]
    registry.quick("rm", "base")
    assert "[gone]" in registry.run("show", "small-pickled", "--lineage").stdout
    assert "nothing is known" in registry.run("show", registry.base, "--lineage").stdout
    assert registry.quick("show", registry.base, "--lineage", "--versions", "--json").json["versions"] == []
