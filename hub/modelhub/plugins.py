"""Plugins: found, blocked, loaded, guarded and listed. The only module that knows pluggy.

A plugin is a module named in the entry-point group ``modelhub``. Whatever it does wrong (it fails to import, raises, hangs,
yields something else than records, speaks a newer API) is a line in its `PluginReport`, and the others go on: a plugin that
failed contributes nothing, one that clashes with an earlier one loses only what it clashes over. This module does not decide
which format a file has, and runs none of the callables that the records hold.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any

import pluggy

from modelhub import codecs, distribution, hookspecs, ops
from modelhub.declared import Check, Codec, Combination, Conversion, Event, Format, Op, Program, Recipe
from modelhub.records import check_record

GROUP = "modelhub"
CORE = "modelhub"
"""The name that the core's own codecs, ops and recipes are listed under; it cannot be blocked."""
SECONDS = 10.0
"""How long one import or one hook call may take; ``MODELHUB_PLUGIN_SECONDS`` overrides it."""

_log = logging.getLogger(__name__)

RECORDS: dict[str, tuple[type, ...]] = {
    "modelhub_codecs": (Codec,),
    "modelhub_ops": (Op,),
    "modelhub_formats": (Format,),
    "modelhub_recipes": (Recipe,),
    "modelhub_conversions": (Conversion, Program, Combination),
    "modelhub_checks": (Check,),
}
"""The hooks that declare records, in the order in which they are asked, and what each may yield."""


@dataclass(frozen=True, slots=True)
class PluginReport:
    """What became of one plugin. ``status``: ok; partial (something needs an extra that is not installed); clash (a name was
    taken already: the earlier plugin's stays); failed (nothing of it is used); blocked (by ``MODELHUB_DISABLE``). ``reason``
    says why."""

    name: str
    version: str
    status: str = "ok"
    reason: str = ""
    formats: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()


@dataclass(slots=True)
class Plugins:
    """Everything that the loaded plugins declare. First come, first served: the core, first-party plugins, then by name."""

    formats: dict[str, Format] = field(default_factory=dict)
    codecs: dict[str, Codec] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)
    recipes: list[Recipe] = field(default_factory=list)
    conversions: list[Conversion | Program] = field(default_factory=list)
    combinations: list[Combination] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    reports: list[PluginReport] = field(default_factory=list)
    origin: dict[tuple[str, str], str] = field(default_factory=dict)
    """(kind, name) of a record -> the plugin that declared it, e.g. ``("format", "npz") -> "npz"``."""
    observers: list[tuple[str, pluggy.HookImpl]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Tell every observer. One that raises is logged; one that hangs is logged and not called again in this process."""
        for name, impl in tuple(self.observers):
            try:
                with time_limit(_seconds()):
                    _call(impl, event=event)
            except Exception as error:  # noqa: BLE001 - an observer's failure is its own
                _log.warning("plugin %s failed on the event %r: %s", name, event.kind, describe(error))
            except TimedOut as error:
                self.observers.remove((name, impl))
                _log.warning("plugin %s %s on the event %r and is not told any more", name, error, event.kind)

    def report(self, name: str) -> PluginReport:
        """The report of the plugin called ``name``; KeyError where there is none."""
        for report in self.reports:
            if report.name == name:
                return report
        raise KeyError(name)

    def plugin_of(self, kind: str, name: str) -> PluginReport:
        """The report of the plugin that declared the ``kind`` (format, codec, op, ...) called ``name``."""
        return self.report(self.origin[kind, name])


# --- guarding -----------------------------------------------------------------------------------------------------


class TimedOut(BaseException):
    """Raised inside plugin code that ran too long. No Exception, so that an ``except Exception`` there does not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimedOut` in the body when it takes longer. Main thread only: elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if armed:
            raise TimedOut(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    # Repeated, for code that swallows even a BaseException once.
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer)
        signal.signal(signal.SIGALRM, previous)


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the place in the plugin's code that it came from."""
    text = " ".join(str(error).split()) or "no message"
    text = text if len(text) <= 300 else text[:297] + "..."
    if isinstance(error, TimedOut):
        return text
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith("<frozen"):
            place = f" ({os.path.basename(code.co_filename)}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}"


def _seconds() -> float:
    try:
        return float(os.environ.get("MODELHUB_PLUGIN_SECONDS", ""))
    except ValueError:
        return SECONDS


def _call(impl: pluggy.HookImpl, **arguments: Any) -> Any:
    return impl.function(*(arguments[name] for name in impl.argnames))


# --- loading ------------------------------------------------------------------------------------------------------


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        # A module's names are mostly imported ones: what bears no mark is not looked at more closely.
        if isinstance(plugin, ModuleType) and getattr(vars(plugin).get(name), f"{GROUP}_impl", None) is None:
            return None
        return super().parse_hookimpl_opts(plugin, name)


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    version: str
    first_party: bool
    load: Callable[[], Any]


@dataclass(slots=True)
class _Declared:
    """What one plugin's hooks yielded, before it is accepted."""

    hooks: list[str] = field(default_factory=list)
    records: list[tuple[str, Any]] = field(default_factory=list)
    observers: list[pluggy.HookImpl] = field(default_factory=list)


class _Refused(Exception):
    """The plugin broke its contract; the message is its report's reason."""


_loaded: Plugins | None = None
_loading = threading.Lock()


def get() -> Plugins:
    """The plugins of this process, loaded on the first call."""
    global _loaded
    with _loading:
        if _loaded is None:
            with _uncollected():
                _loaded = load()
        return _loaded


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """What plugins bring lives as long as the process: the garbage collector goes over none of it while it is made, and over none
    of it again, here and in the workers that are forked from here (a twelfth of what a short command takes)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


def use(plugins: Plugins | None) -> None:
    """Make `get` return ``plugins``; None makes the next call load afresh."""
    global _loaded
    with _loading:
        _loaded = plugins


def disabled_names() -> frozenset[str]:
    """The names in ``MODELHUB_DISABLE``, comma separated."""
    return frozenset(filter(None, (name.strip() for name in os.environ.get("MODELHUB_DISABLE", "").split(","))))


def load(*, disable: Collection[str] | None = None) -> Plugins:
    """Load every installed plugin afresh; never raises for a plugin's sake. ``disable`` stands in for ``MODELHUB_DISABLE``."""
    blocked = disabled_names() if disable is None else frozenset(disable)
    manager = _Manager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins()
    seen: dict[str, str] = {}
    for candidate in _candidates():
        name, version = candidate.name, candidate.version
        if name in blocked and name != CORE:
            plugins.reports.append(PluginReport(name, version, "blocked", "named in MODELHUB_DISABLE"))
        elif name in seen:
            reason = f"a plugin called {name} (version {seen[name]}) is installed already: rename one entry point"
            plugins.reports.append(PluginReport(name, version, "clash", reason))
        else:
            seen[name] = version
            plugins.reports.append(_load_one(manager, plugins, candidate))
    return plugins


def _candidates() -> list[_Candidate]:
    scripts, plugins = distribution.entries(distribution.SCRIPT, (GROUP, ""))
    own = next((script for script in scripts if script.distribution), None)
    found = [_Candidate(CORE, own.version if own else "", True, lambda: import_module("modelhub.builtin"))]
    for entry in plugins:
        ours = own is not None and entry.distribution == own.distribution
        found.append(_Candidate(entry.name, entry.version, ours, entry.load))
    return [found[0], *sorted(found[1:], key=lambda item: (not item.first_party, item.name))]


def _load_one(manager: pluggy.PluginManager, plugins: Plugins, candidate: _Candidate) -> PluginReport:
    report = PluginReport(candidate.name, candidate.version)
    try:
        declared = _ask(manager, candidate)
    except _Refused as error:
        return replace(report, status="failed", reason=str(error))
    formats: list[str] = []
    recipes: list[str] = []
    clashes: list[str] = []
    missing: list[str] = []
    for hook, record in declared.records:
        clash = _accept(plugins, candidate.name, record)
        if clash:
            clashes.append(clash)
            continue
        if hook == "modelhub_formats":
            formats.append(record.name)
            missing += [f"{record.name} cannot {what}: {need}" for what, need in record.unavailable.items()]
        elif hook == "modelhub_recipes":
            recipes.append(record.name)
        elif isinstance(record, Program) and record.recipe and record.recipe not in recipes:
            recipes.append(record.recipe)
    plugins.observers += [(candidate.name, impl) for impl in declared.observers]
    status = "clash" if clashes else "partial" if missing else "ok"
    hooks = tuple(sorted(declared.hooks))
    return replace(
        report, status=status, reason="; ".join(clashes + missing), formats=tuple(formats), recipes=tuple(recipes), hooks=hooks
    )


def _ask(manager: pluggy.PluginManager, candidate: _Candidate) -> _Declared:
    """Import a plugin and consume its hooks, all inside the guard."""
    doing = "import"
    seconds = _seconds()
    module: Any = None
    declared = _Declared()
    try:
        # What a plugin prints must not end up in the middle of a command's JSON.
        with contextlib.redirect_stdout(sys.stderr):
            with time_limit(seconds):
                module = candidate.load()
            doing = "registration"
            _forgotten(module)
            manager.register(module, candidate.name)
            for caller in manager.get_hookcallers(module) or ():
                impl = next(impl for impl in caller.get_hookimpls() if impl.plugin is module)
                if not caller.has_spec():
                    if impl.optionalhook:
                        continue
                    raise _Refused(f"implements {caller.name}, which is not a hook; the hooks are {', '.join(_hook_names())}")
                if impl.hookwrapper or impl.wrapper:
                    raise _Refused(f"{caller.name} is a hook wrapper; hooks declare records, there is nothing to wrap")
                declared.hooks.append(caller.name)
                if caller.name not in RECORDS:
                    declared.observers.append(impl)
            for hook in (name for name in RECORDS if name in declared.hooks):
                doing = hook
                impl = next(impl for impl in getattr(manager.hook, hook).get_hookimpls() if impl.plugin is module)
                with time_limit(seconds):
                    records = tuple(_call(impl) or ())
                for record in records:
                    problem = check_record(record, RECORDS[hook])
                    if problem:
                        raise _Refused(f"{hook} yielded {problem}")
                    declared.records.append((hook, record))
    except _Refused:
        _forget(manager, module)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and TimedOut too: one plugin must not stop the others
        _forget(manager, module)
        if doing == "import" and isinstance(error, ModuleNotFoundError) and error.name:
            raise _Refused(f"import failed: the module {error.name} is not installed") from error
        raise _Refused(f"{doing} failed: {describe(error)}") from error
    return declared


def _forget(manager: pluggy.PluginManager, module: Any) -> None:
    if module is not None and manager.is_registered(module):
        manager.unregister(module)


def _hook_names() -> list[str]:
    return sorted(name for name in vars(hookspecs) if name.startswith("modelhub_"))


def _forgotten(module: Any) -> None:
    """A function that is named like a hook but not marked as one would be ignored in silence: say so."""
    for name, value in vars(module).items() if hasattr(module, "__dict__") else ():
        marked = getattr(value, "modelhub_impl", None) is not None
        if name.startswith("modelhub_") and callable(value) and not isinstance(value, type) and not marked:
            raise _Refused(f"{name} is not marked with @modelhub.hookimpl")


def _accept(plugins: Plugins, plugin: str, record: Any) -> str:
    """Add ``record``; or say what it clashes with."""
    kind = type(record).__name__.lower()
    names = _names(record)
    for name in names:
        owner = plugins.origin.get((kind, name))
        if owner:
            return f"{kind} {name} is declared {'twice' if owner == plugin else f'by {owner} already'}"
    match record:
        case Format():
            plugins.formats[record.name] = record
        case Codec():
            try:
                codecs.register(record)
            except ValueError as error:
                return str(error)
            plugins.codecs[record.dtype] = record
        case Op():
            try:
                ops.register(record)
            except ValueError as error:
                return str(error)
            plugins.ops[record.name] = record
        case Recipe():
            plugins.recipes.append(record)
        case Conversion() | Program():
            plugins.conversions.append(record)
            if isinstance(record, Program) and record.recipe:
                same = (item.name == record.recipe and record.target in item.formats for item in plugins.recipes)
                if not any(same):  # people type it like any other recipe
                    plugins.recipes.append(Recipe(name=record.recipe, title=record.title, formats=(record.target,)))
        case Combination():
            plugins.combinations.append(record)
        case Check():
            plugins.checks.append(record)
    plugins.origin.update({(kind, name): plugin for name in names})
    return ""


def _names(record: Any) -> Sequence[str]:
    """What must be unique about a record: a recipe's name for one format may mean something else for another."""
    if isinstance(record, Codec):
        return (record.dtype,)
    if isinstance(record, Recipe):
        return [f"{name}:{record.name}" for name in record.formats] or [record.name]
    name: str = record.name
    return (name,)
