"""Bad PyTorch files: refused or reported for the right reason, in bounded time, and never run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelhub import plugins
from modelhub.detect import inspect_listing, inspect_path
from modelhub.engine import read_tensor
from modelhub.files import list_directory
from modelhub.found import Found

from tests.corpus import pytorch_bad as bad


def look(tmp_path: Path, data: bytes, name: str = "model.pt") -> Found:
    """The file as ``modelhub show`` sees it; where a payload would leave its mark, there is none."""
    path = tmp_path / name
    path.write_bytes(data)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        start = time.monotonic()
        found = inspect_path(str(path), plugins.get().formats)
        assert time.monotonic() - start < 5
    finally:
        os.chdir(before)
    assert not (tmp_path / "OWNED").exists()
    return found


def unsafe(found: Found) -> str:
    return "; ".join(finding.message for finding in found.findings if finding.severity == "unsafe")


def values(found: Found, name: str = "weight") -> bytes:
    return bytes(read_tensor(found.load_table().by_name[name]))


def test_the_good_file_is_good(tmp_path: Path) -> None:
    found = look(tmp_path, bad.checkpoint())
    assert (found.state, found.reason, found.parameters, found.findings) == ("ready", "", 4, ())
    assert values(found) == bad.WEIGHT
    found = look(tmp_path, bad.legacy(bad.state_dict([("weight", bad.tensor(legacy=True))])))
    assert (found.state, found.reason, found.parameters, found.findings) == ("ready", "", 4, ())
    assert values(found) == bad.WEIGHT


@pytest.mark.parametrize("name", bad.PAYLOADS)
def test_a_payload_is_named_and_the_tensors_are_still_read(tmp_path: Path, name: str) -> None:
    found = look(tmp_path, bad.with_payload(bad.PAYLOADS[name]))
    assert f"{name} is called (REDUCE)" in unsafe(found)
    assert found.state == "ready"
    assert values(found) == bad.WEIGHT


def test_os_system_is_named(tmp_path: Path) -> None:
    found = look(tmp_path, bad.with_payload(bad.call("os", "system", "touch OWNED")))
    assert "os.system is called (REDUCE); nothing was run" in unsafe(found)
    assert [finding.check for finding in found.findings] == ["pickle-globals"]


def test_a_global_that_is_only_named_is_reported_too(tmp_path: Path) -> None:
    assert "os.system is named, not called" in unsafe(look(tmp_path, bad.with_payload(b"cos\nsystem\n")))


@pytest.mark.parametrize("junk", [b"\xff\xff junk", b"", b"X\xff\xff\xff\xff"])
def test_a_payload_before_junk_is_unsafe_though_the_pickle_is_broken(tmp_path: Path, junk: bytes) -> None:
    found = look(tmp_path, bad.checkpoint(b"\x80\x02" + bad.call("os", "system", "touch OWNED") + junk))
    assert found.state == "invalid"
    assert "os.system is called" in unsafe(found)


def test_bytes_after_the_pickle_are_reported(tmp_path: Path) -> None:
    found = look(tmp_path, bad.checkpoint(bad.GOOD + bad.GOOD))
    assert f"{len(bad.GOOD)} bytes follow the end of the pickle" in unsafe(found)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "serialization.os.system"),
        ("torch.storage", "os.system"),
        ("torch", "storage.UntypedStorage"),
        ("os\n", "system"),
    ],
)
def test_a_dotted_stack_global_is_not_what_it_looks_like(tmp_path: Path, module: str, name: str) -> None:
    pickle = bad.state_dict([("weight", bad.tensor()), ("x", bad.stack_global(module, name, "touch OWNED"))], 4)
    assert "is called (REDUCE)" in unsafe(look(tmp_path, bad.checkpoint(pickle)))


def test_a_straddled_frame_is_unsafe(tmp_path: Path) -> None:
    assert "straddles the end of its FRAME" in unsafe(look(tmp_path, bad.checkpoint(bad.straddled_frame())))


def test_a_frame_of_a_tebibyte_is_unsafe_and_costs_nothing(tmp_path: Path) -> None:
    found = look(tmp_path, bad.checkpoint(bad.huge_frame()))
    assert "past the end" in unsafe(found)
    assert values(found) == bad.WEIGHT


@pytest.mark.parametrize(
    ("build", "reason"),
    [(bad.duplicate_pickle, "two members are called model/data.pkl"), (bad.case_variant, "differ by case alone")],
)
def test_two_pickles_of_one_name_are_rejected(tmp_path: Path, build: object, reason: str) -> None:
    assert callable(build)
    with pytest.warns(UserWarning, match="Duplicate name") if build is bad.duplicate_pickle else pytest.MonkeyPatch.context():
        data = build()
    found = look(tmp_path, data)
    assert found.state == "invalid"
    assert reason in found.reason


def test_a_pickle_with_a_wrong_crc_is_corrupt(tmp_path: Path) -> None:
    found = look(tmp_path, bad.bad_crc())
    assert found.state == "invalid"
    assert "data.pkl is corrupt" in found.reason


def check(found: Found, name: str) -> list[tuple[str, str]]:
    from modelhub import Checkpoint

    chosen = next(item for item in plugins.get().checks if item.name == name)
    return [
        (finding.severity, finding.message) for finding in chosen.run(Checkpoint(found.path, found.files), found.load_table())
    ]


def test_weights_with_a_wrong_crc_are_found_by_the_check_that_reads_them(tmp_path: Path) -> None:
    found = look(tmp_path, bad.bad_crc(b"model/data/0"))
    assert found.state == "ready"
    [(severity, message)] = check(found, "zip-crc")
    assert severity == "error"
    assert "model/data/0 is corrupt" in message
    assert check(look(tmp_path, bad.checkpoint(), "good.pt"), "zip-crc") == []
    assert check(look(tmp_path, bad.deflated(), "deflated.pt"), "zip-crc") == []


def test_crcs_of_zero_are_unchecked(tmp_path: Path) -> None:
    found = look(tmp_path, bad.zero_crcs())
    assert (found.state, found.findings) == ("ready", ())
    [(severity, message)] = check(found, "zip-crc")
    assert severity == "info"
    assert message.startswith("2 members were written without a CRC")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (bad.names_differ, "has another name in its local header"),
        (bad.sizes_differ, "in the local header"),
        (bad.encrypted, "is encrypted"),
        (bad.overlapping, "overlap at offset"),
        (bad.prefixed, "directory should end at"),
        (bad.followed, "4 bytes follow the zip"),
        (bad.cut, "no zip directory at the end"),
        (bad.short_storage, "has 12 bytes, 16 expected"),
        (bad.long_storage, "has 20 bytes, 16 expected"),
        (bad.lost_storage, "is not in the archive"),
        (bad.stride_beyond, "reaches element 4 of storage '0', which has 4"),
        (bad.offset_beyond, "reaches element 4 of storage '0', which has 4"),
        (bad.negative_stride, "-1 in a shape or in strides"),
        (bad.overflowing_shape, "more elements than there can be"),
        (bad.legacy_short, "the file ends at"),
        (bad.legacy_count, "has 8 bytes, 16 expected"),
        (lambda: bad.byte_order(b"middle"), "byteorder is 'middle', little or big expected"),
        (lambda: bad.checkpoint(bad.huge_text()), "2147483647 bytes are declared"),
        (lambda: bad.checkpoint(bad.huge_integer()), "an integer of 2147483647 bytes"),
        (lambda: bad.checkpoint(b"\x80\x02h\x07."), "takes from its memo what it never put"),
        (lambda: bad.checkpoint(b"\x80\x02t."), "ends in the middle, or takes what it never put"),
        (lambda: bad.checkpoint(b"\x80\x02}"), "ends in the middle"),
        (lambda: bad.checkpoint(b"\x80\x09N."), "protocol 9"),
        (lambda: bad.checkpoint(b"\x80\x05\x97."), "NEXT_BUFFER is no opcode of a checkpoint"),
    ],
)
def test_what_cannot_be_right_is_rejected_with_the_reason(tmp_path: Path, build: object, reason: str) -> None:
    assert callable(build)
    found = look(tmp_path, build())
    assert found.state in ("invalid", "incomplete")
    assert reason in found.reason


@pytest.mark.parametrize(
    "pickle",
    [
        bad.deep_tuple_key(),
        bad.deep_list(),
        bad.doubled_tuple(),
        bad.doubled_plain_key(),
        bad.huge_memo(),
        b"\x80\x02" + b"(" * 300_000 + b".",
        b"\x80\x02" + b"]q\x00h\x00a" * 100_000 + b".",
    ],
    ids=["deep-tuple-key", "deep-list", "doubled-tuple", "doubled-key", "huge-memo", "marks", "cycles"],
)
def test_pickles_made_to_hurt_are_bounded(tmp_path: Path, pickle: bytes) -> None:
    """In a process of 512 MiB and its own stack, so that a crash or a flood fails the test and not the run."""
    path = tmp_path / "model.pt"
    path.write_bytes(bad.checkpoint(pickle))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); "
        "from modelhub import plugins; from modelhub.detect import inspect_path; "
        "print(inspect_path(sys.argv[1], [f for f in plugins.get().formats.values() if f.name == 'pytorch']).state)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("ready", "invalid")


def test_a_legacy_payload_in_the_fourth_pickle_is_unsafe(tmp_path: Path) -> None:
    payload = ("x", bad.call("os", "system", "touch OWNED"))
    found = look(tmp_path, bad.legacy(bad.state_dict([("weight", bad.tensor(legacy=True)), payload])))
    assert "os.system is called" in unsafe(found)
    assert found.state == "ready"


def test_a_legacy_payload_in_the_storage_keys_is_unsafe(tmp_path: Path) -> None:
    keys = b"\x80\x02" + bad.call("os", "system", "touch OWNED") + b"0](" + bad.text("0") + b"e."
    found = look(tmp_path, bad.legacy(bad.state_dict([("weight", bad.tensor(legacy=True))]), key_pickle=keys))
    assert "pickle 5 (storage keys): os.system is called" in unsafe(found)


@pytest.mark.parametrize(
    ("build", "what"), [(bad.tar, "TAR, older than the legacy format"), (bad.gzipped, "gzip"), (bad.seven_zip, "7z")]
)
def test_other_containers_are_identified_and_refused(tmp_path: Path, build: object, what: str) -> None:
    assert callable(build)
    found = look(tmp_path, build(), "model.pth")
    assert found.state == "unsupported"
    assert what in found.reason


def test_big_endian_is_swapped(tmp_path: Path) -> None:
    found = look(tmp_path, bad.byte_order(b"big"))
    assert found.state == "ready"
    assert values(found) == bad.WEIGHT
    assert found.metadata["byteorder"] == "big"


def test_deflated_members_are_inflated(tmp_path: Path) -> None:
    found = look(tmp_path, bad.deflated())
    assert found.state == "ready"
    assert values(found) == bad.WEIGHT
    assert values(found, "half") == bad.WEIGHT[8:]
    assert values(found, "even") == bad.WEIGHT[:4] + bad.WEIGHT[8:12]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (bad.inst(), "os.system is called (INST)"),
        (bad.obj(), "os.system is called (OBJ)"),
        (b"\x82\x07", "extension code 7 names a global"),
        (b"cos\nsystem\n(X\x01\x00\x00\x00at\x81", "os.system is called (NEWOBJ)"),
        (b"ccollections\nOrderedDict\n}b", "attributes are set on collections.OrderedDict itself"),
        (b"K\x01)R", "a int is called"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n(X\x01\x00\x00\x00at}tR", "os.system is called"),
    ],
)
def test_other_ways_to_call_are_known(tmp_path: Path, payload: bytes, message: str) -> None:
    found = look(tmp_path, bad.with_payload(payload))
    assert message in unsafe(found)
    assert found.state == "ready"


@pytest.mark.parametrize("name", ["model.pt", "sklearn.pkl"])
def test_a_pickle_that_is_no_checkpoint_is_listed_with_what_it_names(tmp_path: Path, name: str) -> None:
    found = look(tmp_path, b"\x80\x02" + bad.call("os", "system", "touch OWNED") + b".", name)
    assert found.state == "unsupported"
    assert "os.system is called" in unsafe(found)
    assert "os.system is called" in unsafe(look(tmp_path, bad.text_protocol(), name))


def test_the_safety_check_says_it_again(tmp_path: Path) -> None:
    found = look(tmp_path, bad.with_payload(bad.call("os", "system", "touch OWNED")))
    assert check(found, "pickle-globals") == [("unsafe", "os.system is called (REDUCE); nothing was run")]
    assert check(look(tmp_path, bad.checkpoint(), "good.pt"), "pickle-globals") == []


def test_a_hidden_second_pickle_is_looked_at(tmp_path: Path) -> None:
    hidden = b"\x80\x02" + bad.call("os", "system", "touch OWNED") + b"."
    found = look(tmp_path, bad.checkpoint(more=[("extra/rng.pkl", hidden)]))
    assert "extra/rng.pkl: os.system is called" in unsafe(found)
    assert values(found) == bad.WEIGHT


@pytest.mark.parametrize(
    "stumble",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR",
        b"X\x01\x00\x00\x00xQ",
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000K\x00K\x00tQtR",
    ],
)
@pytest.mark.parametrize("payload", [bad.call("os", "system", "touch OWNED"), bad.stack_global("os", "system", "x"), bad.inst()])
def test_a_payload_behind_what_we_stumble_over_is_named_all_the_same(tmp_path: Path, stumble: bytes, payload: bytes) -> None:
    found = look(tmp_path, bad.checkpoint(bad.state_dict([("weight", stumble), ("x", payload)], 4)))
    assert found.state == "invalid"
    assert "os.system" in unsafe(found)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin", "other.bin"])
def test_what_stands_under_the_names_of_huggingface(name: str, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for data, state, words in ((pointer, "incomplete", "git lfs pull"), (bad.gzipped(), "unsupported", "gzip data")):
        (tmp_path / name).write_bytes(data)
        found = inspect_listing(list_directory(str(tmp_path)), plugins.get().formats).found
        assert len(found) == (name != "other.bin")
        for item in found:
            assert item.state == state
            assert words in item.reason
