"""Plugins that behave, and every way in which one may not: the others always go on."""

from __future__ import annotations

import threading
import time

import pytest
from modelhub import plugins
from modelhub.declared import Event

GOOD = """
    from modelhub import Format, Recipe, hookimpl

    @hookimpl
    def modelhub_formats():
        yield Format(name="{name}", title="A format", suffixes=(".{name}",), detect=lambda file: None, read=lambda checkpoint: ())

    @hookimpl
    def modelhub_recipes():
        yield Recipe(name="{name}-recipe", title="A recipe", choose=lambda tensor, table: None)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELHUB_PLUGIN_SECONDS", "0.5")


def report(name: str) -> plugins.PluginReport:
    return plugins.load().report(name)


def test_a_good_plugin_is_listed_with_its_version_and_what_it_brings(make_plugin) -> None:
    make_plugin("good", GOOD.format(name="good"), version="2.5")
    loaded = plugins.load()
    assert loaded.report("good") == plugins.PluginReport(
        "good", "2.5", "ok", "", ("good",), ("good-recipe",), ("modelhub_formats", "modelhub_recipes")
    )
    assert loaded.formats["good"].title == "A format"
    assert loaded.plugin_of("format", "good").name == "good"


def test_the_core_and_first_party_plugins_come_first(make_plugin) -> None:
    make_plugin("aaa", GOOD.format(name="aaa"))
    names = [item.name for item in plugins.load().reports]
    assert names[0] == "modelhub"
    assert names.index("safetensors") < names.index("aaa")
    assert not [(item.name, item.reason) for item in plugins.load().reports if item.status != "ok"]


BROKEN = {
    "no-import": ("import torch_that_is_not_there", "the module torch_that_is_not_there is not installed"),
    "raises-at-import": ("1 / 0", "import failed: ZeroDivisionError: division by zero (modelhub_bad.py:1)"),
    "exits-at-import": ("import sys; sys.exit('bye')", "import failed: SystemExit: bye"),
    "hangs-at-import": ("import time; time.sleep(60)", "import failed: took longer than 0.5 s"),
    "raises-in-hook": (
        "from modelhub import hookimpl\n@hookimpl\ndef modelhub_formats():\n    raise KeyError('x')",
        "modelhub_formats failed: KeyError: 'x' (modelhub_bad.py:4)",
    ),
    "raises-in-generator": (
        "from modelhub import *\n@hookimpl\ndef modelhub_formats():\n"
        "    yield Format(name='half', title='t', detect=len, read=len)\n    raise OSError('disk')",
        "modelhub_formats failed: OSError: disk",
    ),
    "hangs-in-hook": (
        "import time\nfrom modelhub import hookimpl\n@hookimpl\ndef modelhub_checks():\n"
        "    while True:\n        try: time.sleep(60)\n        except Exception: pass",
        "modelhub_checks failed: took longer than 0.5 s",
    ),
    "wrong-record": (
        "from modelhub import Tensor, hookimpl\n@hookimpl\ndef modelhub_formats():\n    yield Tensor('a', 'F32', (), None)",
        "modelhub_formats yielded a Tensor, expected modelhub.Format",
    ),
    "not-iterable": (
        "from modelhub import hookimpl\n@hookimpl\ndef modelhub_formats():\n    return 7",
        "'int' object is not iterable",
    ),
    "unknown-hook": (
        "from modelhub import hookimpl\n@hookimpl\ndef modelhub_fromats():\n    return ()",
        "implements modelhub_fromats, which is not a hook; the hooks are modelhub_checks",
    ),
    "forgotten-mark": ("def modelhub_formats():\n    return ()", "modelhub_formats is not marked with @modelhub.hookimpl"),
    "wrong-argument": (
        "from modelhub import hookimpl\n@hookimpl\ndef modelhub_on_event(evnet):\n    pass",
        "registration failed: PluginValidationError",
    ),
    "newer-api": (
        "from modelhub import *\n@hookimpl\ndef modelhub_formats():\n    yield Format(name='f', title='t', api=2)",
        "Format 'f' with api=2; this modelhub speaks api 1: upgrade modelhub",
    ),
    "missing-comma": (
        "from modelhub import *\n@hookimpl\ndef modelhub_formats():\n    yield Format(name='f', title='t', suffixes=('.f'))",
        "suffixes is not a tuple of non-empty texts (a trailing comma is missing)",
    ),
    "unknown-dtype": (
        "from modelhub import *\n@hookimpl\ndef modelhub_codecs():\n    yield Codec(dtype='Q9', decode=len)",
        "Codec 'Q9' for an unknown dtype: call modelhub.dtypes.register",
    ),
    "recipe-that-does-nothing": (
        "from modelhub import *\n@hookimpl\ndef modelhub_recipes():\n    yield Recipe(name='r', title='t')",
        "Recipe 'r' that has none of choose, assign, measure and derive",
    ),
    "wrapper": (
        "import pluggy\n@pluggy.HookimplMarker('modelhub')(wrapper=True)\ndef modelhub_formats():\n    return (yield)",
        "modelhub_formats is a hook wrapper",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_the_others_go_on(make_plugin, case: str) -> None:
    source, reason = BROKEN[case]
    make_plugin("bad", source, version="0.3")
    make_plugin("good", GOOD.format(name="good"))
    start = time.monotonic()
    loaded = plugins.load()
    assert time.monotonic() - start < 5
    bad = loaded.report("bad")
    assert (bad.version, bad.status, bad.formats, bad.hooks) == ("0.3", "failed", (), ())
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert "half" not in loaded.formats
    assert loaded.report("good").status == "ok"
    assert {"good", "safetensors"} <= set(loaded.formats)


def test_a_blocked_plugin_is_never_imported(make_plugin, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "imported"
    make_plugin("nosy", f"open({str(witness)!r}, 'w')")
    monkeypatch.setenv("MODELHUB_DISABLE", "other, nosy")
    assert report("nosy") == plugins.PluginReport("nosy", "1.0", "blocked", "named in MODELHUB_DISABLE")
    assert not witness.exists()
    monkeypatch.setenv("MODELHUB_DISABLE", "")
    assert report("nosy").status == "ok"
    assert witness.exists()


def test_the_core_cannot_be_blocked() -> None:
    assert plugins.load(disable=["modelhub"]).report("modelhub").status == "ok"


def test_a_clash_keeps_the_first_and_what_else_the_second_brings(make_plugin) -> None:
    make_plugin("one", GOOD.format(name="mine"))
    make_plugin(
        "two",
        GOOD.format(name="mine").replace("A format", "An impostor")
        + """
    @hookimpl
    def modelhub_checks():
        from modelhub import Check
        yield Check(name="two-check", level="structure", formats=("mine",), run=lambda checkpoint, table: ())
""",
    )
    loaded = plugins.load()
    assert loaded.report("one").status == "ok"
    second = loaded.report("two")
    assert second.status == "clash"
    assert second.reason == "format mine is declared by one already; recipe mine-recipe is declared by one already"
    assert (second.formats, second.recipes) == ((), ())
    assert loaded.formats["mine"].title == "A format"
    assert "two-check" in [check.name for check in loaded.checks]


def test_a_third_party_cannot_replace_a_first_party_format(make_plugin) -> None:
    make_plugin("aaa", GOOD.format(name="safetensors"))
    loaded = plugins.load()
    assert loaded.report("aaa").reason.startswith("format safetensors is declared by safetensors already")
    assert loaded.formats["safetensors"].title != "A format"


def test_two_distributions_with_one_entry_point_name(make_plugin) -> None:
    make_plugin("same", GOOD.format(name="same"))
    make_plugin("other", GOOD.format(name="other"), version="9", entry="same")
    statuses = [(item.version, item.status) for item in plugins.load().reports if item.name == "same"]
    assert sorted(status for _, status in statuses) == ["clash", "ok"]


def test_a_recipe_may_mean_something_else_for_another_format(make_plugin) -> None:
    make_plugin(
        "recipes",
        """
        from modelhub import Recipe, hookimpl

        @hookimpl
        def modelhub_recipes():
            for formats in (("a",), ("b", "c")):
                yield Recipe(name="small", title="t", choose=lambda tensor, table: None, formats=formats)
        """,
    )
    assert report("recipes").status == "ok"


def test_a_missing_extra_is_partial_and_says_how_to_install_it(make_plugin) -> None:
    make_plugin(
        "heavy",
        """
        from modelhub import Format, hookimpl

        @hookimpl
        def modelhub_formats():
            missing = {"read": "pip install 'modelhub-heavy[read]'"}
            yield Format(name="heavy", title="t", suffixes=(".heavy",), detect=lambda file: None, unavailable=missing)
        """,
    )
    assert report("heavy").status == "partial"
    assert report("heavy").reason == "heavy cannot read: pip install 'modelhub-heavy[read]'"
    assert report("heavy").formats == ("heavy",)


def test_a_plugin_that_prints_does_not_reach_stdout(make_plugin, capfd: pytest.CaptureFixture[str]) -> None:
    make_plugin(
        "chatty",
        "print('hello')\n" + "from modelhub import hookimpl\n@hookimpl\ndef modelhub_checks():\n    print('there'); return ()",
    )
    assert report("chatty").status == "ok"
    assert capfd.readouterr().out == ""


def test_every_observer_is_told_whatever_the_others_do(make_plugin, caplog: pytest.LogCaptureFixture) -> None:
    make_plugin("angry", "from modelhub import hookimpl\n@hookimpl\ndef modelhub_on_event(event):\n    raise ValueError('no')")
    make_plugin(
        "hung", "import time\nfrom modelhub import hookimpl\n@hookimpl\ndef modelhub_on_event(event):\n    time.sleep(60)"
    )
    make_plugin(
        "keen", "from modelhub import hookimpl\nseen = []\n@hookimpl\ndef modelhub_on_event(event):\n    seen.append(event.path)"
    )
    loaded = plugins.load()
    loaded.emit(Event(kind="indexed", checkpoint="1", path="/a"))
    loaded.emit(Event(kind="indexed", checkpoint="2", path="/b"))
    import modelhub_keen

    assert modelhub_keen.seen == ["/a", "/b"]
    text = caplog.text
    assert text.count("plugin angry failed on the event 'indexed': ValueError: no") == 2
    assert text.count("plugin hung took longer than 0.5 s on the event 'indexed' and is not told any more") == 1


def test_loading_off_the_main_thread_works(make_plugin) -> None:
    make_plugin("good", GOOD.format(name="good"))
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(report("good").status))
    thread.start()
    thread.join()
    assert got == ["ok"]


def test_loading_imports_nothing_heavy(modelhub_python) -> None:
    heavy = modelhub_python(
        "import sys; from modelhub import plugins; plugins.get();"
        "print([name for name in ('numpy', 'torch', 'sqlalchemy', 'alembic', 'safetensors') if name in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_a_codec_of_a_plugin_is_found_by_conversions(make_plugin) -> None:
    from modelhub import codecs

    make_plugin(
        "thirds",
        """
from modelhub import Codec, DType, dtypes, hookimpl

dtypes.register(DType("THIRDS", 1, kind="quantized", numpy="|u1"))


@hookimpl
def modelhub_codecs():
    yield Codec(dtype="THIRDS", decode=lambda data, elements: data.astype("float32") / 3)
""",
    )
    assert plugins.load().plugin_of("codec", "THIRDS").status == "ok"
    assert codecs.codec_of("THIRDS", "decode").dtype == "THIRDS"
