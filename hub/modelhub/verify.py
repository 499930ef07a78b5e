"""Levels of checking a checkpoint, each with findings in words.

``structure``: it is parsed afresh, extents and sizes are checked, the format's own checks run. ``safety``: what opening it
elsewhere would execute. ``digest``: SHA-256 against what an earlier read recorded, or against a list. ``values``: every weight
is read: NaN, infinity. ``runnable``: the format's own runtime opens it. Without a level: structure and safety, which read no
weights.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

from modelhub import dtypes
from modelhub.declared import Check, Format
from modelhub.digest import Hashing
from modelhub.distribution import install_hint
from modelhub.errors import ModelhubError, PluginError, UsageError
from modelhub.files import Checkpoint
from modelhub.found import Found
from modelhub.model import Model, finding_json, printable
from modelhub.promises import git_digest, promise
from modelhub.table import Table
from modelhub.types import Extent, Finding

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.plugins import Plugins
    from modelhub.workers import ParsePool

LEVELS = ("structure", "safety", "digest", "values", "runnable")
DEFAULT = ("structure", "safety")
SUMS_LINE = re.compile(rb"^\\?([0-9a-fA-F]{64}) [ *](.+)$")
MAX_SUMS = 64 << 20
RUN_MEMORY = 8 << 30
"""Bytes of address space for a runtime that runs a model, beyond three times the model's size."""
RUN_SECONDS = 600.0
Progress = Callable[[int], None]


@dataclass(slots=True)
class VerifyReport:
    """What was checked and what was found. ``found``: findings by level, also of levels without any; ``ok``: none is an error or
    unsafe. ``bytes``: how much of the weights was read."""

    model: Model
    level: str
    found: dict[str, list[Finding]] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0

    @property
    def findings(self) -> list[Finding]:
        return [finding for findings in self.found.values() for finding in findings]

    def add(self, level: str, *findings: Finding) -> None:
        self.found.setdefault(level, []).extend(findings)

    @property
    def ok(self) -> bool:
        return not any(finding.severity in ("error", "unsafe") for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model.id or printable(self.model.absolute_path),
            "name": printable(self.model.name),
            "ok": self.ok,
            "level": self.level,
            "findings": [finding_json(finding) for finding in self.findings],
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
        }


def levels_of(level: str | None) -> tuple[str, ...]:
    """The levels that ``--level`` asks for. UsageError for an unknown one."""
    if level is None:
        return DEFAULT
    if level == "all":
        return LEVELS
    if level not in LEVELS:
        raise UsageError(f"there is no level {level!r}", f"levels: {', '.join(LEVELS)}, all")
    return (level,)


def verify(
    model: Model,
    *,
    plugins: Plugins,
    pool: ParsePool,
    level: str | None = None,
    against: Model | str | None = None,
    catalog: Catalog | None = None,
    hashing: Hashing | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check one model. ``against``: another model, or the path of a file as ``sha256sum`` writes it; it adds the comparison to
    the levels. ``hashing``: where files are hashed ahead; by default they are when they are needed."""
    started = time.monotonic()
    levels = levels_of(level)
    done = [*levels, *(["against"] if against is not None else [])]
    report = VerifyReport(model, level or ", ".join(done), {name: [] for name in done})
    found = _look(model, pool, report, levels)
    table = found.load_table() if found else Table(())
    if found and found.state == "ready":
        if "structure" in levels:
            report.add("structure", *check_sharing(table, plugins.formats.get(found.format)))
        _run_checks(found, plugins, pool, levels, report)
        if "values" in levels:
            report.add("values", *check_values(table, _counting(report, progress)))
    if hashing is None:
        with Hashing(progress=progress) as own:
            _hash(model, levels, against, catalog, report, own)
    else:
        _hash(model, levels, against, catalog, report, hashing)
    if isinstance(against, Model):
        report.add("against", *check_equal(table, against, _counting(report, progress)))
    if catalog and model.id:  # the index keeps what reading said; what checking added is kept beside it
        known = found.findings if found else ()
        kept = {
            name: [finding for finding in findings if finding.severity != "info" and finding not in known]
            for name, findings in report.found.items()
        }
        now = catalog.refresh(model)
        if now.version != model.version and catalog.unchanged(now):  # the digests said that these are other weights
            model = now
        if any(kept.values()) or set(catalog.findings(model)) - {*known}:  # a write is dear where there is nothing to write
            catalog.set_findings(model, kept)
    report.seconds = time.monotonic() - started
    return report


def _hash(
    model: Model,
    levels: Sequence[str],
    against: Model | str | None,
    catalog: Catalog | None,
    report: VerifyReport,
    hashing: Hashing,
) -> None:
    """The checks that read whole files."""
    if "digest" in levels or isinstance(against, str):
        hashing.ahead(model.file_paths)
    if "digest" in levels:
        report.add("digest", *check_digests(model, catalog, report, hashing))
    if isinstance(against, str):
        report.add("against", *check_sums(model, against, report, hashing))


def _counting(report: VerifyReport, progress: Progress | None) -> Progress:
    def tell(n: int) -> None:
        report.bytes += n
        if progress:
            progress(n)

    return tell


def _look(model: Model, pool: ParsePool, report: VerifyReport, levels: Sequence[str]) -> Found | None:
    """Parse the model afresh, in a worker; what reading it has to say belongs to structure, or to safety. That it cannot be read
    at all fails whatever was asked for."""
    try:
        found = pool.inspect_path(model.absolute_path)
    except ModelhubError as error:
        report.add(levels[0], Finding("structure", "error", str(error)))
        return None
    for finding in found.findings:
        level = "safety" if finding.severity == "unsafe" else "structure"
        if level in levels:
            report.add(level, finding)
    if found.state != "ready":
        report.add(levels[0], Finding("structure", "error", f"{found.state}: {found.reason}"))
    for tensor in found.load_table().tensors if found.table else ():
        if tensor.unsupported and "structure" in levels:
            report.add("structure", Finding("structure", "info", f"not convertible: {tensor.unsupported}", tensor=tensor.name))
    return found


# --- structure ----------------------------------------------------------------------------------------------------


def check_sharing(table: Table, format: Format | None) -> Iterable[Finding]:
    """Bytes that belong to several stored tensors, where the format does not allow that."""
    sharing = format.sharing if format else "any"
    if sharing == "any":
        return
    places = sorted(
        (tensor.value.file, tensor.value.offset, tensor.value.nbytes, tensor.name)
        for tensor in table.stored
        if isinstance(tensor.value, Extent) and tensor.value.nbytes
    )
    file, end, owner, extent = "", 0, "", (0, 0)
    for path, offset, nbytes, name in places:
        if path == file and offset < end and not (sharing == "exact" and extent == (offset, nbytes)):
            message = f"its bytes {offset} to {offset + nbytes} overlap those of {owner}, which end at {end}"
            yield Finding("sharing", "error", message, tensor=name, file=path)
        if path != file or offset + nbytes > end:
            file, end, owner, extent = path, offset + nbytes, name, (offset, nbytes)


def _run_checks(found: Found, plugins: Plugins, pool: ParsePool, levels: Sequence[str], report: VerifyReport) -> None:
    """The plugins' checks for this format and these levels, in a worker. One that cannot run says so."""
    names: list[tuple[str, str]] = []
    for check in plugins.checks:
        if check.level not in levels or not {found.format, found.container} & set(check.formats):
            continue
        missing = [module for module in check.requires if find_spec(module) is None]
        if missing:
            extra = install_hint(check.extra) if check.extra else f"install {', '.join(missing)}"
            report.add(check.level, Finding(check.name, "info", f"not run, {', '.join(missing)} is not installed: {extra}"))
        else:
            names.append((check.name, check.level))
    if "runnable" in levels and not any(check.level == "runnable" and found.format in check.formats for check in plugins.checks):
        report.add("runnable", Finding("runnable", "info", f"nothing here can run {found.format} checkpoints: not checked"))
    for name, level in names:
        try:
            known = {*found.findings, *report.findings}
            said = _run(found, name) if level == "runnable" else pool.call(run_check, found, name)
            report.add(level, *(finding for finding in dict.fromkeys(said) if finding not in known))
        except ModelhubError as error:
            report.add(level, Finding(name, "error", f"the check failed: {error}"))


def _run(found: Found, name: str) -> list[Finding]:
    """A check that runs the model: in a worker of its own, with room for the model and the time that loading it takes."""
    from modelhub.workers import ParsePool

    with ParsePool(processes=1, memory=RUN_MEMORY + 3 * found.size) as pool:
        return pool.call(run_check, found, name, seconds=RUN_SECONDS)


def run_check(found: Found, name: str) -> list[Finding]:
    """Run one plugin's check; called in a worker."""
    from modelhub import plugins

    check: Check = next(check for check in plugins.get().checks if check.name == name)
    checkpoint = Checkpoint(found.path, found.files, name=found.name, missing=found.missing)
    try:
        return list(check.run(checkpoint, found.load_table()))
    except ModelhubError as error:
        return [Finding(name, "error", str(error))]
    except OSError as error:  # it was there a moment ago
        return [Finding(name, "error", f"cannot be read: {error.strerror or error}", file=error.filename or found.path)]
    except Exception as error:  # whatever plugin code raises is the check's failure, and is told as that
        raise PluginError(f"{name} failed: {type(error).__name__}: {error}") from error
    finally:
        checkpoint.close()


# --- values -------------------------------------------------------------------------------------------------------


def check_values(table: Table, progress: Progress | None = None) -> list[Finding]:
    """Read every weight: NaN and infinity are warnings, for some models mean them."""
    from modelhub.engine.values import Handles

    with Handles() as handles, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = [item for part in pool.map(lambda tensor: _values_of(tensor, handles, progress), table.logical) for item in part]
        handles.check_unchanged()
    return found


def _values_of(tensor: Any, handles: Any, progress: Progress | None) -> list[Finding]:
    import numpy as np

    from modelhub import codecs
    from modelhub.engine.values import tensor_chunks

    if tensor.value is None:  # its dtype may be nothing but a name (texts)
        return []
    dtype, codec = dtypes.get(tensor.dtype), codecs.find(tensor.dtype)
    if dtype.kind not in ("float", "complex", "quantized") or codec is None or not prod(tensor.shape):
        return []
    nan = infinite = 0
    try:
        for chunk in tensor_chunks(tensor, handles):
            values = codec.decode(chunk, len(chunk) // dtype.block_bytes * dtype.block)
            if not np.isfinite(values).all():
                nan += int(np.isnan(values).sum())
                infinite += int(np.isinf(values).sum())
            if progress:
                progress(len(chunk))
    except ModelhubError as error:
        return [Finding("values", "error", str(error), tensor=tensor.name)]
    parts = [f"{count} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count]
    return (
        [Finding("values", "warning", f"{' and '.join(parts)} of {prod(tensor.shape)} values", tensor=tensor.name)]
        if parts
        else []
    )


# --- digests ------------------------------------------------------------------------------------------------------


def check_digests(model: Model, catalog: Catalog | None, report: VerifyReport, hashing: Hashing) -> Iterable[Finding]:
    """SHA-256 of every file against what an earlier read recorded; what is new is recorded."""
    for digest in map(hashing.digest, model.file_paths):
        report.bytes += digest.stat.st_size
        yield from _check_promise(digest.path, digest.sha256.hex())
        before = catalog.file_digest(digest.path) if catalog else None
        if before is None:
            recorded = catalog.set_file_digest(digest.path, digest.sha256, digest.stat) if catalog else False
            what = (
                "recorded, there was nothing to compare with"
                if recorded
                else "not in the catalog, there is nothing to compare with"
            )
            yield Finding("digest", "info", f"SHA-256 {digest.sha256.hex()}: {what}", file=digest.path)
        elif before != digest.sha256:
            message = (
                f"SHA-256 is {digest.sha256.hex()}, {before.hex()} was recorded for the same size and time: the bytes have rotted"
            )
            yield Finding("digest", "error", message, file=digest.path)


def _check_promise(path: str, sha256: str) -> Iterable[Finding]:
    """A file against the digest that its store, or whoever downloaded it, wrote down."""
    promised = promise(path)
    if promised is None:
        return
    kind, found = ("SHA-256", sha256) if promised.is_sha256 else ("git's SHA-1", git_digest(path))
    if found == promised.digest:
        yield Finding("digest", "info", f"{kind} is what {promised.by} says", file=path)
    else:
        message = f"{kind} is {found}, {promised.by} says {promised.digest}: these are not the bytes that were downloaded"
        yield Finding("digest", "error", message, file=path)


def check_sums(model: Model, path: str, report: VerifyReport, hashing: Hashing) -> Iterable[Finding]:
    """Every file of the model against a list as ``sha256sum`` writes it, by its path from the list's directory, or its name
    alone."""
    sums = read_sums(path)
    for digest in map(hashing.digest, model.file_paths):
        report.bytes += digest.stat.st_size
        name = os.fsencode(os.path.relpath(digest.path, os.path.dirname(os.path.abspath(path))))
        base = os.fsencode(os.path.basename(digest.path))
        wanted = sums.get(name) or sums.get(base)
        if wanted is None:
            yield Finding("against", "warning", f"{os.path.basename(path)} does not list it", file=digest.path)
        elif wanted != digest.sha256:
            yield Finding("against", "error", f"SHA-256 is {digest.sha256.hex()}, {wanted.hex()} is listed", file=digest.path)
    if not any(os.path.basename(os.fsdecode(name)) in {os.path.basename(file) for file in model.file_paths} for name in sums):
        yield Finding("against", "error", f"{os.path.basename(path)} lists none of the model's files")


def read_sums(path: str) -> dict[bytes, bytes]:
    """Name -> SHA-256. ModelhubError where a line is something else."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SUMS)
    except OSError as error:
        raise ModelhubError(f"cannot read {path}: {error.strerror}") from error
    sums = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        match = SUMS_LINE.match(line)
        if match is None:
            raise ModelhubError(
                f"{path}, line {number}: not a SHA-256 and a name", "sha256sum FILES > SHA256SUMS writes such a list"
            )
        name = match[2]
        sums[name.removeprefix(b"./")] = bytes.fromhex(match[1].decode())
    return sums


def is_sums(path: str) -> bool:
    """Whether the file at ``path`` begins like a list that ``sha256sum`` wrote."""
    try:
        with open(path, "rb") as file:
            return SUMS_LINE.match(file.read(4096).lstrip().split(b"\n", 1)[0].rstrip(b"\r")) is not None
    except OSError:
        return False


def check_equal(table: Table, other: Model, progress: Progress | None = None) -> Iterable[Finding]:
    """Every tensor against the same name in another model, to the byte."""
    from modelhub.compare import compare_tables, whole_table

    difference = compare_tables(table, whole_table(other), measure=False, progress=progress)
    for name in difference.only_a:
        yield Finding("against", "error", f"is not in {other.name}", tensor=name)
    for name in difference.only_b:
        yield Finding("against", "error", f"is in {other.name} only", tensor=name)
    for tensor in difference.tensors:
        if not tensor.same:
            kinds = f": {tensor.a.dtype} {list(tensor.a.shape)} here, {tensor.b.dtype} {list(tensor.b.shape)} there"
            differs = (tensor.a.dtype, tensor.a.shape) != (tensor.b.dtype, tensor.b.shape)
            yield Finding(
                "against", "error", f"differs from {other.name}{kinds if differs else ' in its bytes'}", tensor=tensor.name
            )
    if not table.tensors and difference.equal:
        yield Finding("against", "error", f"neither this nor {other.name} has tensors to compare")
    elif difference.equal:
        yield Finding("against", "info", f"all {len(difference.tensors)} tensors equal those of {other.name}, to the byte")
