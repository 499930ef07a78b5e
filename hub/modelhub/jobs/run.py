"""Carries out one job: the same code for a worker, and for somebody who waits at a terminal. Claims nothing, and decides nothing
of retries.

A conversion is written down in its row step by step: where its output will be, before anything is written; which files are about
to get their names, and how they were made, before they do. Whoever takes it up after a crash finds out from that how far it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from modelhub.errors import DriveAway, ModelhubError, ModelNotFound, SourceChanged
from modelhub.jobs.heart import Heart, Stopped, patiently
from modelhub.model import Model, printable

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import Job
    from modelhub.convert import ConvertReport, Progress
    from modelhub.digest import FileDigest
    from modelhub.engine.write import Written
    from modelhub.plan import ConvertOptions, Plan
    from modelhub.plugins import Plugins
    from modelhub.workers import ParsePool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to. ``result`` is kept with it; ``message`` ends its log; ``event`` and ``model`` are for observers."""

    result: Mapping[str, Any]
    message: str
    event: Literal["converted", "verified", "failed"] | None = None
    model: Model | None = None


class Superseded(Exception):
    """There is nothing to do any more: what the job was about is gone, or was replaced."""


class Busy(Exception):
    """Another job is doing the same to the same content now: once it is done, there may be nothing left to do."""


def run(catalog: Catalog, job: Job, plugins: Plugins, *, heart: Heart, pool: ParsePool) -> Outcome:
    """Do what ``job`` says. Raises ModelhubError, OSError or MemoryError where it fails; `Stopped`, `Superseded`, `Busy`."""
    if job.kind == "convert":
        return _convert(catalog, job, plugins, heart, pool)
    if job.kind == "verify":
        return _verify(catalog, job, plugins, heart, pool)
    raise ModelhubError(f"this modelhub knows no jobs of the kind {job.kind!r}", "a newer one has queued it")


def spec_of(to: str, output: str | None, options: ConvertOptions, *, digest: bool = False, own: bool = False) -> dict[str, Any]:
    """The spec of a conversion job."""
    return {
        "to": to,
        "output": output,
        "options": {**asdict(options), "extra": dict(options.extra)},
        "digest": digest,
        "own": own,
    }


def _source(catalog: Catalog, job: Job, pool: ParsePool) -> Model:
    """The model that the job is about, where it is now, with the content that the job was made for."""
    if job.checkpoint is None:
        if job.version:
            raise Superseded("its model was forgotten")
        from modelhub.resolve import resolve

        return resolve(catalog, job.source, pool=pool)
    try:
        model = catalog.get(job.checkpoint)
    except ModelNotFound:
        raise Superseded("its model was forgotten") from None
    if model.version != job.version:
        raise Superseded(f"its source was replaced: version {job.version} was meant, {model.version} stands there now")
    if model.state == "offline":
        raise DriveAway(f"{model.name} is on a drive that is not there ({model.root})")
    if model.state == "missing":
        raise DriveAway(f"{model.name} is missing from {model.absolute_path}")
    if not catalog.unchanged(model):
        raise SourceChanged(f"{model.absolute_path} is not as it was when it was scanned", "scan it again")
    return model


# --- verification -------------------------------------------------------------------------------------------------


def _verify(catalog: Catalog, job: Job, plugins: Plugins, heart: Heart, pool: ParsePool) -> Outcome:
    from modelhub.verify import levels_of, verify

    level = job.spec.get("level") or None
    model = _source(catalog, job, pool)
    whole = {"digest", "values"} & set(levels_of(level))
    heart.begin("verify", model.size * len(whole))
    report = verify(model, plugins=plugins, pool=pool, level=level, catalog=catalog if model.id else None, progress=heart.did)
    heart.check()
    wrong = [finding for finding in report.findings if finding.severity in ("error", "unsafe")]
    result = {
        "ok": report.ok,
        "level": report.level,
        "findings": len([finding for finding in report.findings if finding.severity != "info"]),
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
    }
    message = "verified: ok" if report.ok else f"verified: {len(wrong)} wrong, the first: {wrong[0].check}: {wrong[0].message}"
    return Outcome(result, message, "verified" if report.ok else "failed", model)


def parts_of(catalog: Catalog, options: ConvertOptions, pool: ParsePool) -> list[Model]:
    """The models that are put on the source, by the paths that ``options.combine`` names."""
    from modelhub.resolve import resolve

    return [resolve(catalog, path, pool=pool) for _, path, _ in options.combine]


# --- conversion ---------------------------------------------------------------------------------------------------


def _convert(catalog: Catalog, job: Job, plugins: Plugins, heart: Heart, pool: ParsePool) -> Outcome:
    from modelhub.plan import ConvertOptions, make_plan

    if job.made:
        again = _resume(catalog, job, plugins, pool)
        if again is not None:
            return again
    source = _source(catalog, job, pool)
    options = ConvertOptions(**job.spec.get("options", {}))
    output = job.spec.get("output")
    _check_drive(catalog, output)
    digests: Sequence[FileDigest] = ()
    if job.spec.get("digest") and source.id:
        source, digests = digest_source(catalog, source, heart)
        if job.origin != "user" and source.digest:
            # In this order: what another job has made by the time that it is not at work any more is seen by the second question.
            if not catalog.jobs.first_of_its_kind(job, bytes.fromhex(source.digest.removeprefix("sha256:"))):
                raise Busy
            same = _same_output(catalog, job, source, plugins)
            if same is not None:
                path = printable(same.absolute_path)
                return Outcome({"same_as": path, "model": same.id}, f"nothing to do: {path} is the same made of the same")
    old = _ours(catalog, job, output, source, plugins) if job.spec.get("own") and output else None
    if old is not None:
        options = replace(options, force=True)
    plan = make_plan(source, job.spec["to"], output, options, plugins, parts_of(catalog, options, pool))
    report, made = carry(catalog, job, plan, plugins, heart, digests=digests)
    if old is not None:
        _clear(old, report)
    return Outcome(result_of(report), f"made {printable(report.output)}, {report.size:,} bytes", "converted", made)


def carry(
    catalog: Catalog,
    job: Job,
    plan: Plan,
    plugins: Plugins,
    heart: Heart,
    *,
    progress: Progress | None = None,
    digests: Sequence[FileDigest] = (),
) -> tuple[ConvertReport, Model]:
    """Carry ``plan`` out as ``job``, and record what came of it. ``digests``: of the source's files, as they were read."""
    from modelhub import provenance
    from modelhub.convert import carry_out

    def tell(stage: str, nbytes: int) -> None:
        if stage != heart.stage:
            heart.begin(stage)
        heart.did(nbytes)
        if progress:
            progress(stage, nbytes)

    def before_publish(written: Written, files: Sequence[tuple[str, str]]) -> None:
        for digest in digests:
            if _stat(digest.path) != (digest.stat.st_size, digest.stat.st_mtime_ns, digest.stat.st_ino):
                raise SourceChanged(f"{digest.path} changed while it was being converted", "try again once nothing writes to it")
        made.update(
            files=[_made(path, final, bool(job.spec.get("digest")), heart) for path, final in files],
            path=plan.output if plan.output in [final for _, final in files] or not plan.format.extension else files[0][1],
            how=asdict(provenance.how(plan, written, plugins, job.rule)),
            digest=plan.source.digest,
            version=job.version,
        )
        heart.begin("publish")
        heart.last_step = True  # before the row says so: what it says is carried through
        if heart.why is not None:
            heart.last_step = False
            raise Stopped(heart.why)
        if not patiently(lambda: catalog.jobs.made(job, made)):
            heart.last_step = False
            raise Stopped("lost")

    made: dict[str, Any] = {}
    if not catalog.jobs.output(job, plan.output):
        raise Stopped("lost")
    heart.begin("write", plan.size)
    report = carry_out(plan, plugins, tell, before_publish)
    return report, _record(catalog, made, [plan.source, *plan.parts], plugins)


def result_of(report: ConvertReport) -> dict[str, Any]:
    """What is kept of a conversion: all that ``convert --json`` says but its tensors."""
    return {name: value for name, value in report.to_json().items() if name not in ("source", "tensors")}


def digest_source(catalog: Catalog, source: Model, heart: Heart) -> tuple[Model, Sequence[FileDigest]]:
    """The source with its SHA-256, and those of its files with the stats that they hold for. What was hashed before, and has not
    changed since, is not read again."""
    from modelhub.digest import FileDigest, Hashing

    known = {path: catalog.file_digest(path) for path in source.file_paths}
    heart.begin("hash", sum(os.stat(path).st_size for path, digest in known.items() if digest is None))
    digests = []
    with Hashing(progress=heart.did) as hashing:
        hashing.ahead(path for path, digest in known.items() if digest is None)
        for path, digest in known.items():
            if digest is not None:
                digests.append(FileDigest(path, digest, os.stat(path)))
                continue
            found = hashing.digest(path)
            if not catalog.set_file_digest(path, found.sha256, found.stat):
                raise SourceChanged(f"{path} is not as it was when it was scanned", "scan it again")
            digests.append(found)
    return catalog.refresh(source), digests


def _check_drive(catalog: Catalog, output: str | None) -> None:
    """Where its drive is not mounted, an output would fill the disk that has the mount point."""
    for root in catalog.roots() if output else ():
        if root.offline and os.path.join(os.path.abspath(output or ""), "").startswith(os.path.join(root.path, "")):
            raise DriveAway(f"the output {printable(output or '')} is for a drive that is not there ({printable(root.path)})")


def _made(path: str, final: str, digest: bool, heart: Heart) -> dict[str, Any]:
    """What is written down of a file before it gets its name."""
    size, mtime, inode = _stat(path)
    made: dict[str, Any] = {"path": final, "size": size, "mtime": mtime, "inode": inode}
    if digest:
        from modelhub.digest import digest_file

        made["sha256"] = digest_file(path, lambda _: heart.check()).sha256.hex()
    return made


def _stat(path: str) -> tuple[int, int, int]:
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns, info.st_ino


def _resume(catalog: Catalog, job: Job, plugins: Plugins, pool: ParsePool) -> Outcome | None:
    """An earlier try may have got as far as giving the output its name, or may have begun to: then that is finished, and
    recorded. None where it did not, or did so for what its source was before."""
    from modelhub.scratch import sweep

    files = job.made["files"]
    sweep(os.path.dirname(job.output))
    try:
        # The inode may change by itself on some network drives; size and time together do not.
        if not files or any(_stat(file["path"])[:2] != (file["size"], file["mtime"]) for file in files):
            return None
    except FileNotFoundError:
        return None
    sources = [_source_then(catalog, job), *_parts_then(catalog, job, pool)]
    model = _record(catalog, job.made, sources, plugins)
    if job.made["version"] != job.version:  # of what its source was when it was begun; now it is to be made of what it is
        return None
    size = sum(file["size"] for file in files)
    result = {
        "output": printable(job.made["path"]),
        "files": [printable(file["path"]) for file in files],
        "size": size,
        "resumed": True,
    }
    return Outcome(result, f"{printable(job.made['path'])} was made already when its process died: recorded", "converted", model)


def _source_then(catalog: Catalog, job: Job) -> Model:
    """The source as it was when the output was made of it, as far as that is known."""
    digest = job.made.get("digest")
    if job.checkpoint is not None:
        model, version = catalog.get(job.checkpoint), job.made["version"]
        return model if model.version == version else model._replace(version=version, digest=digest)
    return Model(
        None, os.path.basename(job.source), None, job.source, "", "", "", "", {}, 0, 0, 0, (), "missing", "", digest, 0, None
    )  # fmt: skip


def _parts_then(catalog: Catalog, job: Job, pool: ParsePool) -> list[Model]:
    """What was put on the source, as far as it is still there."""
    from modelhub.plan import ConvertOptions

    try:
        return parts_of(catalog, ConvertOptions(**job.spec.get("options", {})), pool)
    except ModelhubError:
        return []


def _record(catalog: Catalog, made: Mapping[str, Any], sources: Sequence[Model], plugins: Plugins) -> Model:
    from modelhub import provenance
    from modelhub.catalog.content import Provenance

    digests = {file["path"]: bytes.fromhex(file["sha256"]) for file in made["files"] if "sha256" in file}
    return provenance.record_output(catalog, made["path"], sources, Provenance(**made["how"]), plugins, digests)


# --- never twice --------------------------------------------------------------------------------------------------


def _same_output(catalog: Catalog, job: Job, source: Model, plugins: Plugins) -> Model | None:
    """An output that is there, as it was written, and was made of the same content in the same way."""
    if not source.digest:
        return None
    recipe, wanted = _how(job, plugins)
    for id, options in catalog.outputs_of(source.digest, recipe):
        if options == wanted:
            model = catalog.get(id)
            if model.state == "ready" and catalog.unchanged(model):
                return model
    return None


def _how(job: Job, plugins: Plugins) -> tuple[str, dict[str, Any]]:
    """The recipe and the options that the lineage of what the job makes will have."""
    from modelhub.plan import ConvertOptions
    from modelhub.targets import parse_target

    target, recipe = parse_target(job.spec["to"], plugins)
    options = ConvertOptions(**job.spec.get("options", {}))
    return recipe.name if recipe else "", {"to": target.name, **options.shaping()}


def _ours(catalog: Catalog, job: Job, output: str, source: Model, plugins: Plugins) -> Model | None:
    """What stands at ``output``, or in shards called after it, if it was made by a rule of the same source, by this one or in
    the same way (rules get other names), and nobody has touched it since."""
    output = os.path.abspath(output)
    parts = (f"{os.path.splitext(output)[0]}-", f"{output}.")
    for model in catalog.children(source) if job.rule else ():
        if model.absolute_path != output and not all(path.startswith(parts) for path in model.file_paths):
            continue
        for step in catalog.lineage(model):
            same = step["rule"] == job.rule or (step["recipe"], step["options"]) == _how(job, plugins)
            if step["rule"] and same and step["parent"] == source.id and catalog.unchanged(model):
                return model
    return None


def _clear(old: Model, report: ConvertReport) -> None:
    """Remove what the new output has not replaced of the old one: there were more shards, or other ones."""
    for path in set(old.file_paths) - set(report.files) if report.plan.format.extension else ():
        with contextlib.suppress(OSError):
            os.unlink(path)
