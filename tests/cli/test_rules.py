"""``modelhub rules``: the list, the dry run, and applying them now, as people and programs see them."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest
from modelhub.catalog import Catalog
from modelhub.catalog.jobs import Job
from modelhub.rules.dispatch import dispatch
from modelhub.rules.read import load
from safetensors.torch import load_file

from tests.cli.conftest import Drive
from tests.conftest import Modelhub
from tests.hub.drives import safetensors
from tests.watching import watching

RULES = """
[[rules]]
name = "pickles become safetensors"
where = ["format=pytorch", "size<9kB"]
convert = "safetensors"
output = "{root}/.converted/{dir}/{stem}{ext}"

[[rules]]
where = ["*"]
verify = "structure"
priority = -5
"""


@pytest.fixture
def ruled(own_drive: Drive, tmp_path: Path) -> Drive:
    (tmp_path / "home" / "config.toml").write_text(RULES)
    return own_drive


def jobs_of(home: Path) -> list[Job]:
    with Catalog.open(str(home / "catalog.db")) as catalog:
        return catalog.jobs.list()


def wait(home: Path) -> list[Job]:
    """The jobs, once all of them have ended."""
    deadline = time.monotonic() + 60
    while True:
        jobs = jobs_of(home)
        if all(job.state in ("done", "failed", "cancelled") for job in jobs):
            return jobs
        assert time.monotonic() < deadline, jobs
        time.sleep(0.1)


def test_without_rules_it_says_how_to_write_one(modelhub: Modelhub, own_home: Path) -> None:
    for action in ("ls", "test", "run"):
        said = modelhub("rules", action).stdout
        assert f"no rules; add [[rules]] to {own_home}/config.toml" in said
        assert 'convert = "safetensors"' in said
    assert modelhub("rules", "--json").json == []
    (own_home / "config.toml").write_text(said.partition("\n\n")[2])
    assert len(modelhub("rules", "--json").json) == 1  # the example is a rule


def test_rules_are_tested_applied_and_listed(ruled: Drive, tmp_path: Path) -> None:
    drive = ruled.path
    first, second = ruled.run("rules", "--json").json
    assert first == {
        "name": "pickles become safetensors",
        "where": ["format=pytorch", "size<9kB"],
        "do": "convert",
        "target": "safetensors",
        "output": "{root}/.converted/{dir}/{stem}{ext}",
        "priority": 0,
        "enabled": True,
        "matches": 4,
        "done": 0,
        "waiting": 0,
        "failed": 0,
    }
    assert (second["name"], second["matches"], second["priority"]) == ("rule 2: verify structure", 8, -5)

    outputs = [f"{drive}/.converted/lpips/weights/{v}/{name}.safetensors" for v in ("v0.0", "v0.1") for name in ("alex", "vgg")]
    tests = ruled.run("rules", "test", "--json").json
    would = [test for test in tests if test["would"]]
    assert sorted(test["output"] for test in would if test["do"] == "convert") == outputs
    assert len(would) == 4 + 8
    said = ruled.run("rules", "test").stdout
    assert "pickles become safetensors: convert to safetensors\n" in said
    assert "\nrule 2: verify structure\n" in said
    assert "4 jobs would be queued, for 25.5 kB" in said
    assert outputs[0] in said
    assert ruled.run("jobs", "--json").json == []
    assert not (drive / ".converted").exists()

    assert ruled.run("rules", "run").stdout == "12 jobs queued; modelhub jobs shows how they get on\n"
    jobs = wait(tmp_path / "home")
    assert [job.state for job in jobs] == ["done"] * 12, jobs
    assert sorted(job.output for job in jobs if job.output) == outputs
    assert load_file(outputs[0])
    first, second = ruled.run("rules", "--json").json
    assert (first["matches"], first["done"], first["waiting"], first["failed"]) == (4, 4, 0, 0)
    assert (second["matches"], second["done"]) == (12, 8)  # what was made is verified as well
    made = ruled.run("ls", "--where", "path~.converted", "--json").json
    assert len(made) == 4
    assert ruled.run("show", made[0]["id"], "--json").json["lineage"][0]["rule"] == "pickles become safetensors"

    said = ruled.run("rules", "test").stdout
    assert "0 jobs would be queued\n  4 passed by: it was done already" in said
    assert len(ruled.run("rules", "run", "--json").json["jobs"]) == 4
    wait(tmp_path / "home")
    assert ruled.run("rules", "run").stdout == "0 jobs queued: nothing is new\n"


def test_a_model_is_tested_against_every_rule(ruled: Drive) -> None:
    tests = ruled.run("rules", "test", "silero_vad", "--json").json
    assert [(test["rule"], test["would"], test["skipped"]) for test in tests] == [
        ("rule 2: verify structure", True, None),
        ("pickles become safetensors", False, "the rule does not mean it: size<9kB does not hold"),
    ]
    assert "not: the rule does not mean it: size<9kB does not hold" in ruled.run("rules", "test", "silero_vad").stdout
    ruled.run("rules", "test", "nothing", status=3)


def test_narrower_rules_withdraw_what_waits(ruled: Drive, tmp_path: Path) -> None:
    with Catalog.open(str(tmp_path / "home" / "catalog.db")) as catalog:
        assert len(dispatch(catalog, load(tomllib.loads(RULES)))) == 12
    (tmp_path / "home" / "config.toml").write_text('[[rules]]\nname = "few"\nwhere = ["name=alex"]\nverify = "structure"\n')
    assert ruled.run("rules", "run").lines == [
        "10 jobs of rules that do not ask for them any more: cancelled",
        "0 jobs queued: nothing is new",
    ]
    jobs = ruled.run("jobs", "--json").json
    assert {job["rule"] for job in jobs if job["state"] == "queued"} == {"few"}
    cancelled = {job["error"] for job in jobs if job["state"] == "cancelled"}
    assert cancelled == {
        "the rule 'pickles become safetensors' is gone from the configuration",
        "the rule 'few' does not mean it any more",
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[[rules]]\nwhere = ['*']\n", "rule 1: it does not say what to do; give one of"),
        ("[[rules]]\nwhere = ['*']\nconvert = 'nothing'\n", "convert: there is no format called 'nothing'; formats that can"),
        ("[[rules]]\nwhere = ['sise>1']\nverify = 'all'\n", "where: 'sise' is not a field; did you mean size?"),
        ("[watch]\nsetle = 1\n", "[watch] setle in "),
        ("[[rules]\n", "is not valid TOML"),
    ],
)
def test_a_mistake_ends_with_two_and_says_where(written: str, message: str, modelhub: Modelhub, own_home: Path) -> None:
    (own_home / "config.toml").write_text(written)
    for action in ("ls", "test", "run"):
        done = modelhub("rules", action, status=2)
        assert done.stderr.startswith("modelhub: error: ")
        assert f"{own_home}/config.toml" in done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_only_a_test_takes_models(modelhub: Modelhub) -> None:
    assert "rules run takes no MODEL; modelhub rules test x" in modelhub("rules", "run", "x", status=2).stderr


def test_a_daemon_applies_them_to_what_turns_up_and_not_again(tmp_path: Path) -> None:
    config = """
    [[rules]]
    name = "half"
    where = ["format=safetensors"]
    quantize = "bf16"
    [[rules]]
    name = "check"
    where = ["*"]
    verify = "structure"
    """
    drive, home = tmp_path / "drive", tmp_path / "home"
    safetensors(drive / "before.safetensors", fill=1)

    with watching(home, drive, config=config) as daemon:

        def done() -> set[tuple[str, str]]:
            jobs = jobs_of(home)
            assert not [job for job in jobs if job.state in ("failed", "cancelled")], jobs
            return {(job.rule, Path(job.source).name) for job in jobs if job.state == "done"}

        expected = {
            ("half", "before.safetensors"),
            ("check", "before.safetensors"),
            ("check", "before.bf16.safetensors"),
        }
        daemon.until(lambda: done() == expected, 40)
        mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
        assert not [name for name in ("numpy", "sqlalchemy", "torch") if name in mapped]  # it loads no plugin, and stays small
        safetensors(drive / "new" / "after.safetensors", fill=2)
        expected |= {("half", "after.safetensors"), ("check", "after.safetensors"), ("check", "after.bf16.safetensors")}
        daemon.until(lambda: done() == expected, 40)
        (drive / "new").rename(drive / "moved")
        daemon.until(lambda: "moved/after.safetensors" in daemon.states())
        daemon.stop()
        count = len(jobs_of(home))
        daemon.start()
        safetensors(drive / "last.safetensors", fill=3)
        expected |= {("half", "last.safetensors"), ("check", "last.safetensors"), ("check", "last.bf16.safetensors")}
        daemon.until(lambda: done() == expected, 40)
        assert len(jobs_of(home)) == count + 3


def test_a_daemon_applies_them_to_a_drive_that_comes_back(tmp_path: Path) -> None:
    drive, away, home = tmp_path / "drive", tmp_path / "away", tmp_path / "home"
    safetensors(drive / "m.safetensors", fill=1)
    with watching(home, drive) as daemon:
        daemon.until(lambda: daemon.states() == {"m.safetensors": "ready"})
        daemon.stop()
    drive.rename(away)
    with watching(home, config='[[rules]]\nwhere = ["*"]\nverify = "structure"\n') as daemon:
        daemon.until(lambda: daemon.states() == {"m.safetensors": "offline"})
        assert jobs_of(home) == []
        away.rename(drive)
        daemon.until(lambda: [job.state for job in jobs_of(home)] == ["done"], 40)
