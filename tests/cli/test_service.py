"""``modelhub service``: the unit that keeps the watch running, as systemd reads it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelhub.daemon import notify
from modelhub.errors import UsageError
from modelhub.service import Facts, quote, unit

from tests.conftest import Modelhub, command_path
from tests.hub.drives import safetensors
from tests.watching import mount, unmount


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where units of a user belong."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return tmp_path / "config" / "systemd" / "user" / "modelhub.service"


@pytest.fixture
def drive(tmp_path: Path, quick: Modelhub) -> Path:
    """A root with everything in its name that means something to systemd, short of what it cannot hold."""
    drive = tmp_path / '100% of it\'s "models" $HOME \\ größe;#'
    safetensors(drive / "a.safetensors")
    quick("scan", drive)
    return drive


def values(text: str, key: str) -> list[str]:
    """What systemd makes of the values of a key that takes words."""
    found = []
    for value in re.findall(rf"^{key}=(.*)$", text, re.MULTILINE):
        found += [word.replace("%%", "%") for word in shlex.split(value)]
    return found


def verified(text: str, *, system: bool) -> str:
    """What ``systemd-analyze verify`` has to say of a unit; it must take it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here to verify units with")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "modelhub.service"
        path.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", *([] if system else ["--user"]), "verify", path],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": place, "SYSTEMD_LOG_LEVEL": "notice"},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("system", [False, True])
def test_systemd_takes_the_unit(drive: Path, modelhub: Modelhub, own_home: Path, config: Path, system: bool) -> None:
    text = modelhub("service", "show", *(["--system"] if system else [])).stdout
    complaints = [line for line in verified(text, system=system).splitlines() if "modelhub.service" in line]
    assert complaints == []
    assert values(text, "ExecStart") == [command_path(), "watch"]
    assert values(text, "Environment") == [f"MODELHUB_HOME={own_home}"]
    assert values(text, "ReadWritePaths") == [str(own_home), f"-{drive}"]
    assert f"WantedBy={'multi-user' if system else 'default'}.target" in text
    for line in ("Type=notify", "KillMode=mixed", "TimeoutStopSec=10", "ProtectSystem=strict", "NoNewPrivileges=yes"):
        assert line in text.splitlines()
    assert "RequiresMountsFor" not in text
    assert not config.exists()


@pytest.mark.parametrize("name", ["100% $HOME", 'it\'s "that" \\ one', "plain"])
def test_systemd_reads_what_was_meant(tmp_path: Path, name: str) -> None:
    program = tmp_path / name / "modelhub"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    facts = Facts((str(program), "watch", '$HOME 100%n \\ "'), (("MODELHUB_HOME", name),), (str(tmp_path),), (f"/{name}",), "", 1)
    text = unit(facts, system=True)
    assert verified(text, system=True) == ""
    # It would have told of what it cannot take.
    wrong = text.replace("\nReadWritePaths=", '\nReadWritePaths="not-absolute" ', 1)
    assert "not-absolute" in verified(wrong, system=True)
    # A shell stands in where systemd takes no program of that name, and hands its words on.
    command = [word.replace("$$", "$").replace("%%", "%") for word in values(text, "ExecStart")]
    done = subprocess.run(
        [*command[: command.index(str(program))], "/bin/echo", "a b"] if command[0] == "/bin/sh" else ["/bin/echo", "a b"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "a b\n"
    assert command[-3:] == [str(program), "watch", '$HOME 100%n \\ "']


def test_install_writes_tells_and_runs_nothing(drive: Path, modelhub: Modelhub, config: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    spy = tmp_path / "bin" / "systemctl"
    spy.write_text(f"#!/bin/sh\necho $@ >> {told}\n")
    spy.chmod(0o755)
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert modelhub("service", "status", status=1, **environ).stdout.startswith(f"{config} is not there")
    out = modelhub("service", "install", **environ).stdout
    assert "  systemctl --user daemon-reload\n  systemctl --user enable --now modelhub.service\n" in out
    assert not told.exists()
    assert config.read_text() == modelhub("service", "show").stdout
    assert config.stat().st_mode & 0o777 == 0o644
    assert os.listdir(config.parent) == ["modelhub.service"]
    status = modelhub("service", "status", "--json").json
    assert status == {"path": str(config), "installed": True, "current": True, "daemon": None}
    # Another root, another unit.
    safetensors(tmp_path / "second" / "b.safetensors")
    modelhub("scan", tmp_path / "second")
    assert "is not what install would write now" in modelhub("service", "status", status=1).stdout
    assert modelhub("service", "install", "--json").json["path"] == str(config)
    assert f"-{tmp_path / 'second'}" in values(config.read_text(), "ReadWritePaths")
    # Gone again, and told what is left to do.
    out = modelhub("service", "uninstall").stdout
    assert "systemctl --user disable --now modelhub.service" in out
    assert not config.exists()
    assert "there is no" in modelhub("service", "uninstall").stdout


def test_what_somebody_else_wrote_stays(drive: Path, quick: Modelhub, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("[Service]\nExecStart=/bin/true\n")
    for action in ("install", "uninstall"):
        assert "was not written by modelhub" in quick("service", action, status=3).stderr
    assert config.read_text().startswith("[Service]")
    quick("service", "install", "--force")
    assert config.read_text().startswith("# Written by")
    for words in (["show", "--force"], ["status", "--force"], ["frobnicate"], []):
        quick("service", *words, status=2)
    config.unlink()
    config.parent.rmdir()
    config.parent.write_text("no directory")
    assert "cannot be written" in quick("service", "install", status=3).stderr


def test_the_catalog_and_the_environment(drive: Path, quick: Modelhub, tmp_path: Path, config: Path) -> None:
    catalog = tmp_path / "elsewhere" / "c.db"
    environ = {"MODELHUB_CATALOG": str(catalog), "MODELHUB_DISABLE": "pytorch"}
    assert "nothing to watch" in quick("service", "show", status=2, **environ).stderr
    quick("scan", drive, **environ)
    text = quick("service", "show", **environ).stdout
    assert set(values(text, "Environment")) >= {f"MODELHUB_CATALOG={catalog}", "MODELHUB_DISABLE=pytorch"}
    assert str(catalog.parent) in values(text, "ReadWritePaths")


def test_no_password_gets_into_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelhub.service import _without_password

    for url in ("postgresql://team:secret@db/models", "postgresql://db/models?user=a&password=secret"):
        with pytest.raises(UsageError) as error:
            _without_password(url)
        assert "secret" not in str(error.value)
        assert "config.toml" in str(error.value)
    for url in ("postgresql://team@db:5432/models", "/srv/catalog.db", "sqlite:////srv/c.db"):
        assert _without_password(url) == url


def test_a_drive_stays_free_to_be_unmounted(quick: Modelhub, tmp_path: Path, config: Path) -> None:
    """What is named is its mount point: a directory inside of it, pinned in the service's view, would keep it mounted."""
    point = tmp_path / "usb"
    point.mkdir()
    mount("-t", "tmpfs", "none", point)
    try:
        safetensors(point / "models" / "a.safetensors")
        quick("scan", point / "models")
        assert values(quick("service", "show").stdout, "ReadWritePaths")[1:] == [f"-{point}"]
        unmount(point)
        quick("scan")
        assert values(quick("service", "show").stdout, "ReadWritePaths")[1:] == [f"-{point}"]
    finally:
        unmount(point)


def test_outputs_of_rules_are_writable(drive: Path, quick: Modelhub, own_home: Path, tmp_path: Path, config: Path) -> None:
    (tmp_path / "out").mkdir()
    (own_home / "config.toml").write_text(
        f'[[rules]]\nwhere = ["*"]\nconvert = "safetensors"\noutput = "{tmp_path}/out/{{dir}}/{{stem}}{{ext}}"\n'
        '[[rules]]\nwhere = ["*"]\nconvert = "pytorch"\noutput = "{root}/.converted/{stem}{ext}"\n'
        "[jobs]\nworkers = 1\nmemory = 1000000000\n"
    )
    text = quick("service", "show").stdout
    assert f"-{tmp_path}/out" in values(text, "ReadWritePaths")
    assert "MemoryHigh=3000000000" in text


def test_paths_that_a_unit_cannot_hold_are_refused(quick: Modelhub, tmp_path: Path, config: Path) -> None:
    for number, name in enumerate(("caf\udce9", "line\nbreak")):
        safetensors(tmp_path / name / "a.safetensors")
        home = {"MODELHUB_HOME": str(tmp_path / f"home{number}")}
        quick("scan", tmp_path / name, **home)
        error = quick("service", "install", status=2, **home).stderr
        assert "rename it, or watch it without systemd" in error
        assert len(error.splitlines()) == 1
    assert not config.exists()
    with pytest.raises(UsageError):
        quote("a\x7fb")


def test_root_keeps_what_it_needs_and_others_nothing() -> None:
    facts = Facts(("/usr/bin/modelhub", "watch"), (), ("/var/lib/modelhub",), ("/mnt",), "", 1)
    assert "CapabilityBoundingSet=CAP_CHOWN " in unit(facts, system=True)
    assert "PrivateTmp=yes" in unit(facts, system=True)
    other = unit(Facts(facts.command, (), facts.writable, facts.drives, "models", 1), system=True)
    assert "\nUser=models\n" in other
    assert "\nCapabilityBoundingSet=\n" in other
    assert "User=" not in unit(facts, system=False)
    assert "CapabilityBoundingSet" not in unit(facts, system=False)
    assert "PrivateTmp" not in unit(Facts(facts.command, (), ("/tmp/home",), (), "", 1), system=False).replace(
        "# PrivateTmp", "#"
    )


# --- telling systemd ------------------------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{place}/s")
        receiver.settimeout(5)
        yield receiver, f"{place}/s"


def test_notify(listener: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, path = listener
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify(notify.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert notify.notify(notify.READY, "STATUS=two\nlines \udcff")
    assert receiver.recv(1000) == b"READY=1\nSTATUS=two lines \\udcff"
    assert notify.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", receiver.recv(1000))
    for wrong in ("/no/such/socket", "relative", ""):
        monkeypatch.setenv("NOTIFY_SOCKET", wrong)
        assert not notify.notify(notify.STOPPING)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind("\0modelhub-test-notify")
        abstract.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@modelhub-test-notify")
        assert notify.notify(notify.WATCHDOG)
        assert abstract.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_is_told_in_half_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "120000000")
    assert notify.interval() == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.interval() == 60
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert notify.interval() is None
