"""Carries a plan out: write beside the destination, fsync, read back and compare with the source, give it its name, record it.

Whatever happens in between, the destination holds either what it held before or the whole verified output.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from modelhub import program
from modelhub.compare import equal_tables
from modelhub.detect import inspect_path
from modelhub.engine.cast import prepare
from modelhub.engine.values import Handles
from modelhub.engine.write import Written, write_checkpoint
from modelhub.errors import ConversionError, ModelhubError, VerificationError
from modelhub.found import Found
from modelhub.model import Model, printable
from modelhub.packing import measure_packed
from modelhub.plan import ConvertOptions, Plan, make_plan
from modelhub.plugins import Plugins
from modelhub.scratch import Scratch
from modelhub.table import Table
from modelhub.types import Extent, Tensor, WriteOptions
from modelhub.workers import ParsePool

Progress = Callable[[str, int], None]
"""Called with a stage (write, verify) and a number of bytes, from several threads. What it raises stops the work."""
BeforePublish = Callable[[Written, "Sequence[tuple[str, str]]"], None]
"""Called when all is written, synced and verified, with (where a file is now, where it will be) of each. What it raises keeps the
output from getting its name."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was done. ``files`` are absolute, ``size`` their bytes; ``stages`` the seconds of each stage; ``tensors`` the
    output's."""

    plan: Plan
    output: str
    files: tuple[str, ...]
    size: int
    seconds: float
    verified: bool
    found: Found | None
    written: Written
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def tensors(self) -> list[dict[str, Any]]:
        errors = self.written.errors
        if self.plan.program:  # what it made is known from reading it alone
            made = self.found.load_table().logical if self.found else ()
            return [{"name": t.name, "dtype": t.dtype} for t in made]
        return [
            {"name": t.name, "dtype": t.dtype, **(errors[t.name].to_json() if t.name in errors else {})}
            for t in self.plan.table.tensors
        ]

    @property
    def compared(self) -> Sequence[Mapping[str, Any]]:
        """What a program measured: for each output of the model, how far the new one's is from the source's."""
        return self.written.result.compared if self.written.result else ()

    @property
    def notes(self) -> Sequence[str]:
        """What a program had to say."""
        return self.written.result.notes if self.written.result else ()

    @property
    def overflows(self) -> dict[str, int]:
        """Tensors with values that the output's dtype cannot hold -> how many."""
        return {name: sums.overflow for name, sums in self.written.errors.items() if sums.overflow}

    def to_json(self) -> dict[str, Any]:
        return {
            "source": printable(self.plan.source.absolute_path),
            "output": printable(self.output),
            "format": self.plan.format.name,
            "recipe": self.plan.recipe.name if self.plan.recipe else None,
            "route": list(self.plan.route),
            "files": [printable(file) for file in self.files],
            "size": self.size,
            "seconds": round(self.seconds, 3),
            "bits_per_weight": self.plan.bits_per_weight,
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "thread_seconds": {name: round(seconds, 3) for name, seconds in self.written.seconds.items()},
            "verified": self.verified,
            "losses": list(self.plan.losses),
            "fallbacks": dict(self.plan.fallbacks),
            "overflow": self.overflows,
            **({"compared": list(self.compared), "notes": list(self.notes)} if self.plan.program else {}),
            "tensors": self.tensors,
        }


def convert(
    model: Model, *, to: str, output: str | None, options: ConvertOptions, plugins: Plugins, progress: Progress | None = None
) -> ConvertReport:
    """Plan and carry out a conversion; see `make_plan` for what it refuses."""
    return carry_out(make_plan(model, to, output, options, plugins), plugins, progress)


def carry_out(
    plan: Plan, plugins: Plugins, progress: Progress | None = None, before_publish: BeforePublish | None = None
) -> ConvertReport:
    """Write what the plan says. Nothing stands under a real name until it was read back and found equal to its source."""
    if plan.size > plan.free:
        raise ConversionError(
            f"{plan.directory} has {plan.free:,} bytes free, the output takes {plan.size:,}", "name another place with -o PATH"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    started = time.monotonic()
    stages: dict[str, float] = {}
    with Scratch(plan.directory) as scratch:
        name = os.path.basename(plan.output)
        target = os.path.join(scratch.output, name)
        stamp = time.monotonic()
        if prepare(plan.table.tensors, (lambda: progress("prepare", 0)) if progress else lambda: None):
            stages["prepare"] = time.monotonic() - stamp
        stamp = time.monotonic()
        if plan.program:
            written = program.run(plan, target)
        else:
            with Handles(scratch=scratch.path) as handles:
                written = _write(plan, target, handles, progress)
        stages["write"] = time.monotonic() - stamp
        if progress:
            progress("verify" if plan.options.verify else "sync", 0)
        stamp = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="modelhub-sync") as syncing:
            synced = syncing.submit(_sync, scratch.output, written.files, plan)
            found = _read_back(plan, target, written, plugins) if plan.options.verify else None
            synced.result()
        stages["verify and sync" if found else "sync"] = time.monotonic() - stamp
        # A writer begins what names the shards (an index) last: a reader never sees an index without its shards.
        names = [name] if not plan.format.extension else written.files
        _check_replaceable(plan)
        if before_publish:
            base = target if not plan.format.extension else scratch.output
            before_publish(written, [(os.path.join(base, file), _final(plan, file)) for file in written.files])
        scratch.publish(names, replace=plan.options.force or plan.options.in_place)
    files = tuple(_final(plan, file) for file in written.files)
    size = sum(os.path.getsize(file) for file in files)
    shown = plan.output if plan.output in files or not plan.format.extension else files[0]
    return ConvertReport(plan, shown, files, size, time.monotonic() - started, found is not None, found, written, stages)


def _final(plan: Plan, file: str) -> str:
    return os.path.join(plan.output if not plan.format.extension else plan.directory, file)


def _write(plan: Plan, target: str, handles: Handles, progress: Progress | None) -> Written:
    options = WriteOptions(
        name=_stem(plan),
        max_shard_size=plan.options.max_shard_size,
        extra=plan.options.extra,
    )
    tell = (lambda n: progress("write", n)) if progress else None
    return write_checkpoint(
        plan.format,
        plan.table,
        target,
        options,
        threads=plan.options.threads,
        progress=tell,
        handles=handles,
        sync=False,
        check=plan.options.verify,
    )


def _stem(plan: Plan) -> str:
    """The output's name without what says its format: shards and their index are called after it."""
    name = os.path.basename(plan.output)
    if not plan.format.extension:
        return name
    endings = (ending for ending in (plan.format.extension, *plan.format.suffixes) if name.lower().endswith(ending))
    return name[: len(name) - len(max(endings, key=len, default=""))]


def _sync(directory: str, files: list[str], plan: Plan) -> None:
    base = directory if plan.format.extension else os.path.join(directory, os.path.basename(plan.output))
    folders = {base}
    for file in files:
        path = os.path.join(base, file)
        folders.add(os.path.dirname(path))
        _fsync(path)
    for folder in folders:
        _fsync(folder)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_replaceable(plan: Plan) -> None:
    """``--force`` replaces a directory only where it is a checkpoint itself: a slip of the pen must not cost a home directory."""
    if os.path.isdir(plan.output) and os.listdir(plan.output):
        try:
            with ParsePool(processes=1) as pool:  # what stands there already is anybody's: it is looked at in a worker
                found = pool.inspect_path(plan.output)
        except (ModelhubError, OSError) as error:
            raise ConversionError(
                f"{plan.output} is a directory that holds no checkpoint: it is not replaced", "-o PATH names another place"
            ) from error
        strange = {os.path.join(plan.output, name) for name in os.listdir(plan.output)} - set(found.files)
        if found.format != plan.format.name or strange:
            raise ConversionError(
                f"{plan.output} holds more than a {plan.format.name} checkpoint: it is not replaced",
                "-o PATH names another place",
            )


# --- reading back -------------------------------------------------------------------------------------------------


def _read_back(plan: Plan, target: str, written: Written, plugins: Plugins) -> Found:
    """Open the output with its format's own reader: every tensor must be there, as planned, in the bytes that were checked."""
    base = target if not plan.format.extension else os.path.dirname(target)
    first = target if os.path.lexists(target) else os.path.join(base, written.files[0])
    found = inspect_path(first, plugins.formats)
    if found.state != "ready" or plan.format.name not in (found.format, found.container):
        raise VerificationError(
            f"the output reads back as {found.format or 'unknown'}, {found.state}: {found.reason}", "please report this"
        )
    if plan.program:  # what a tool made has no table to be held against; that its format's reader takes it is what can be said
        return found
    table = found.load_table()
    wanted = {tensor.name: tensor for tensor in plan.table.tensors}
    read = _as_written(wanted, table)
    unlike = []
    for name, tensor in wanted.items():
        have = read[name]
        if isinstance(have.value, Extent) and written.values.get(name) == tensor.value:
            _lies_where_it_was_checked(have, have.value, written)
        else:  # the writer put something else, or the reader computes it: then the bytes are what must be equal
            unlike.append((tensor, have))
    differ = equal_tables(unlike, threads=plan.options.threads)
    if differ:
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise VerificationError(f"tensor {differ[0]}{more} reads back with other bytes than its source has", "please report this")
    if plan.recipe and plan.recipe.derive:
        written.errors.update(measure_packed(wanted, table, plan.options.threads))
    return found


def _as_written(wanted: Mapping[str, Tensor], table: Table) -> Mapping[str, Tensor]:
    """What reads back, by the names that were written: parts of a packed weight are stored ones. Strings and the like, which a
    writer carried over as they were, have no value that could be held against the source's."""
    read = {**table.by_name, **{tensor.name: tensor for tensor in table.stored if tensor.name in wanted}}
    if missing := [name for name in wanted if name not in read]:
        raise VerificationError(f"tensor {missing[0]} is not in the output", "please report this")
    others = [tensor.name for tensor in table.stored if tensor.view == "both" and tensor.value and tensor.name not in wanted]
    if extra := [name for name in others if table.ties.get(name) is None]:
        raise VerificationError(f"tensor {extra[0]} is in the output, but not in its source", "please report this")
    for name, tensor in wanted.items():
        have = read[name]
        if (have.dtype, have.shape) != (tensor.dtype, tensor.shape):
            raise VerificationError(
                f"tensor {name} reads back as {have.dtype} {list(have.shape)}, {tensor.dtype} {list(tensor.shape)} was written",
                "please report this",
            )
    return read


def _lies_where_it_was_checked(have: Tensor, extent: Extent, written: Written) -> None:
    """A tensor must lie, by its reader's word, in the very bytes that were compared with its source when they were written."""
    pieces = sorted(
        (offset, nbytes) for path, offset, nbytes in written.checked.get(have.name, ()) if os.path.samefile(path, extent.file)
    )
    at = extent.offset
    for offset, nbytes in pieces:
        if offset != at:
            break
        at += nbytes
    if at != extent.offset + extent.nbytes:
        raise VerificationError(
            f"tensor {have.name} is read back from bytes {extent.offset} to {extent.offset + extent.nbytes}, it was "
            "written elsewhere",
            "please report this",
        )
