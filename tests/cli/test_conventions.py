"""What holds for every command: help, errors, statuses, terminals, pipes, completion, and that nothing is imported in vain."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from modelhub.cli.app import COMMANDS

from tests.cli.conftest import Drive
from tests.conftest import Modelhub, command_path

NAMES = [name for section in COMMANDS.values() for name in section]


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_shows_an_example(name: str, modelhub: Modelhub) -> None:
    text = modelhub(name, "--help").stdout
    assert "Examples:" in text
    assert f"modelhub {name}" in text.split("Examples:")[1]
    (line,) = (section[name] for section in COMMANDS.values() if name in section)
    assert line in text


def test_the_help_lists_every_command(modelhub: Modelhub) -> None:
    text = modelhub("--help").stdout
    for section in COMMANDS.values():
        for name, line in section.items():
            assert f"  {name} " in text
            assert line in text


def test_help_and_ls_import_nothing_in_vain(drive: Drive) -> None:
    code = (
        "import sys; sys.argv = ['modelhub', *sys.argv[1:]]\n"
        "from modelhub.cli import main\n"
        "assert main() == 0\n"
        "heavy = {'numpy', 'sqlalchemy', 'alembic', 'pluggy', 'modelhub_pytorch', 'modelhub_safetensors', 'multiprocessing'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    for words in (["--help"], ["ls"], ["ls", "--json"]):
        # By way of the drive's own runner, the home is the one that was scanned.
        home = drive.run("roots", "-q") and drive.path.parent / "home"
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "MODELHUB_HOME": str(home)},
            check=True,
        )
        assert done.stderr.strip() == "[]", words


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["frobnicate"], 2, "there is no command 'frobnicate'"),
        (["lss"], 2, "did you mean 'ls'"),
        (["ls", "--colour"], 2, "modelhub ls --help"),
        (["ls", "--where", "size>>1"], 2, "size"),
        (["ls", "--where", "nonsense"], 2, "field op value"),
        (["ls", "--sort", "taste"], 2, "taste"),
        (["ls", "--csv", "-q"], 2, "exclude each other"),
        (["show"], 2, "MODEL"),
        (["show", "no-such-model"], 3, "modelhub ls"),
        (["show", "alex"], 3, "could be 2 models"),
        (["show", "./no/such/file"], 3, "there is no model"),
        (["scan", "/no/such/place"], 2, "/no/such/place"),
        (["convert", "silero_vad"], 2, "--to"),
        (["convert", "silero_vad", "--to", "gold"], 2, "gold"),
        (["convert", "silero_vad", "--to", "safetensors:gold"], 2, "gold"),
        (["verify", "silero_vad", "--level", "deep"], 2, "deep"),
        (["verify", "/etc/hostname"], 3, "not a checkpoint of a known format"),
        (["diff", "silero_vad"], 2, "B"),
    ],
)
def test_errors_are_one_line_with_a_hint(words: list[str], status: int, says: str, drive: Drive) -> None:
    done = drive.run(*words, status=status)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("modelhub: error: ")
    assert says in line
    error = drive.run(*words, "--json", status=status).json["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["message"] in line


def test_debug_shows_the_traceback_and_nothing_else_does(drive: Drive) -> None:
    done = subprocess.run([command_path(), "show", "no-such-model", "--debug"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ModelNotFound" in done.stderr


def test_no_arguments_is_help_and_the_version_is_told(modelhub: Modelhub) -> None:
    assert modelhub().stdout == modelhub("--help").stdout
    assert modelhub("--version").stdout.startswith("modelhub 0.")


def in_terminal(words: list[object], environ: dict[str, str], columns: int = 100) -> str:
    """What a terminal of ``columns`` columns shows."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [command_path(), *map(str, words)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", **environ},
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            data = os.read(reader, 65536)
        except OSError:
            break
        if not data:
            break
        output += data
    os.close(reader)
    assert process.wait() == 0, output
    return output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 132])
def test_tables_fit_the_terminal(columns: int, scanned: tuple[Path, Path]) -> None:
    environ = {"MODELHUB_HOME": str(scanned[1]), "NO_COLOR": "1"}
    for words in (["ls"], ["ls", "--totals"], ["roots"], ["plugins"], ["show", "silero_vad_16k", "--tensors"]):
        for line in in_terminal(words, environ, columns).splitlines():
            assert len(line) <= columns, (words, line)


def test_colour_only_where_it_is_wanted(scanned: tuple[Path, Path], drive: Drive) -> None:
    environ = {"MODELHUB_HOME": str(scanned[1])}
    assert "\x1b[" in in_terminal(["ls"], environ)
    assert "\x1b[" not in in_terminal(["ls"], {**environ, "NO_COLOR": "1"})
    assert "\x1b[" not in in_terminal(["ls"], {**environ, "TERM": "dumb"})
    assert "\x1b" not in drive.run("ls").stdout


def test_a_pipe_that_closes_early_is_no_error(scanned: tuple[Path, Path]) -> None:
    environ = {**os.environ, "MODELHUB_HOME": str(scanned[1])}
    for words in ("ls", "ls --json", "show silero_vad --tensors --json", "--help"):
        line = f"set -o pipefail; '{command_path()}' {words} | true"
        for _ in range(3):
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environ, check=False)
            assert (done.returncode, done.stderr) == (0, ""), words


def test_a_full_disk_under_stdout_is_told(scanned: tuple[Path, Path]) -> None:
    environ = {**os.environ, "MODELHUB_HOME": str(scanned[1])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [command_path(), "ls", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, env=environ, check=False
        )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "no space left" in done.stderr


def test_text_of_files_cannot_reach_the_terminal(modelhub: Modelhub, tmp_path: Path) -> None:
    evil = "red\x1b[31m\x07bell\u202egpj.\n\x9b2J"
    header = json.dumps(
        {evil: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"title\x1b[2J": "\x1b[2J" + evil}}
    ).encode()
    header += b" " * (-len(header) % 8)
    path = os.fsencode(tmp_path / "drive") + b"/bad\xffname\x1b[0m\n.safetensors"
    os.mkdir(tmp_path / "drive")
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes(4))
    modelhub("scan", tmp_path / "drive")
    named = os.fsdecode(path)
    shown = (["show", named, "--tensors"], ["show", named, "--tensors", "--json"], ["verify", named])
    for words in (["ls"], ["ls", "--csv"], ["ls", "--json"], *shown):
        done = modelhub(*words)
        for character in ("\x1b", "\x07", "\u202e", "\x9b", "\udcff"):
            assert character not in done.stdout, (words, character)
    (model,) = modelhub("ls", "--json").json
    assert model["path"] == "bad\\xffname\x1b[0m\n.safetensors"
    assert model["path_b64"]
    (tensor,) = modelhub("show", os.fsdecode(path), "--tensors", "--json").json["tensors"]
    assert tensor["name"] == evil  # JSON says it exactly


def test_state_lives_where_it_is_told_to(modelhub: Modelhub, sample_drive: Path, tmp_path: Path) -> None:
    modelhub("--home", tmp_path / "a", "scan", sample_drive / "lpips")
    assert (tmp_path / "a" / "catalog.db").exists()
    modelhub("--catalog", tmp_path / "b.db", "ls", MODELHUB_HOME=str(tmp_path / "a"))
    assert (tmp_path / "b.db").exists()
    (tmp_path / "a" / "config.toml").write_text('catalog = "c.db"\n')
    assert modelhub("--home", tmp_path / "a", "ls", "-q").stdout == ""
    assert (tmp_path / "a" / "c.db").exists()
    assert len(modelhub("--home", tmp_path / "a", "ls", "-q", MODELHUB_CATALOG=str(tmp_path / "a/catalog.db")).lines) == 6


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, modelhub: Modelhub) -> None:
    assert "_MODELHUB_COMPLETE" in modelhub("completion", shell).stdout


def complete(drive: Drive, line: str) -> list[str]:
    words = line.split(" ")
    done = drive.run(_MODELHUB_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return [text.partition(",")[2] for text in done.lines if text.startswith("plain,")]


def test_completion_knows_commands_options_models_and_targets(drive: Drive) -> None:
    assert complete(drive, "modelhub d") == ["diff", "dupes", "doctor"]
    assert complete(drive, "modelhub show sil") == ["silero_vad", "silero_vad_16k"]
    assert complete(drive, "modelhub diff silero_vad al") == ["alex"]
    assert "--totals" in complete(drive, "modelhub ls --to")
    assert {"safetensors", "safetensors:bf16"} <= set(complete(drive, "modelhub convert alex --to safe"))
    assert "bf16" in complete(drive, "modelhub quantize alex b")


def test_bash_completes_with_the_script(drive: Drive, scanned: tuple[Path, Path]) -> None:
    code = (
        'eval "$(modelhub completion bash)"; COMP_WORDS=(modelhub verify silero_vad_); COMP_CWORD=2; '
        "_modelhub_completion modelhub; echo ${COMPREPLY[@]}"
    )
    environ = {"PATH": f"{Path(command_path()).parent}:/usr/bin:/bin", "MODELHUB_HOME": str(scanned[1])}
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.split()[0] == "silero_vad_16k"
