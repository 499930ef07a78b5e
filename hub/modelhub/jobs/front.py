"""Jobs of people: one that they wait for, run here and seen by everybody; one that goes on in the background."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

from modelhub import home
from modelhub.errors import Cancelled, ModelhubError
from modelhub.jobs import identity, limits
from modelhub.jobs.heart import Heart, Stopped, patiently

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import Job
    from modelhub.convert import ConvertReport, Progress
    from modelhub.model import Model
    from modelhub.plan import Plan
    from modelhub.plugins import Plugins

BACKGROUND_ATTEMPTS = 4
"""How often a job in the background is tried, where a later try may help."""


def convert(
    catalog: Catalog,
    plan: Plan,
    to: str,
    plugins: Plugins,
    progress: Progress | None = None,
    farewell: Callable[[Cancelled], None] | None = None,
) -> tuple[ConvertReport, Model]:
    """Carry ``plan`` out in this process, as a job that others see and can cancel (`Cancelled`); what was done, and the model it
    became. ``farewell`` is told of the end where the work does not hear that it is cancelled, and this process ends with it."""
    from modelhub.jobs.run import carry, result_of, spec_of

    me = identity.owner()
    source, spec = plan.source, spec_of(to, plan.output, plan.options)
    try:
        job = catalog.jobs.add("convert", source.absolute_path, spec, checkpoint=source.id, version=source.version, owner=me)
        cancelled = Cancelled(f"job {job.id} was cancelled", "nothing was written")

        def end() -> None:
            if farewell:
                farewell(cancelled)

        with Heart(catalog.jobs, job, status=Cancelled.exit_status, farewell=end) as heart:
            report, made = carry(catalog, job, plan, plugins, heart, progress=progress)
        patiently(lambda: catalog.jobs.finish(job, result_of(report), f"made {report.output}, {report.size:,} bytes"))
    except Stopped as stopped:
        if stopped.why == "lost":
            raise ModelhubError(f"job {job.id} was taken for dead and was given up", "nothing was written; try again") from None
        catalog.jobs.stop(job, "asked to stop")
        raise cancelled from None
    except BaseException as error:
        with contextlib.suppress(ModelhubError):
            for job in _held(catalog, me):
                if isinstance(error, Exception):
                    catalog.jobs.fail(job, *limits.told(error, 0))
                else:  # Ctrl-C, SIGTERM
                    catalog.jobs.stop(job, "interrupted")
        raise
    return report, made


def _held(catalog: Catalog, owner: str) -> list[Job]:
    """The jobs that this process has in hand: Ctrl-C may come before it knows of its own."""
    return [job for job in catalog.jobs.list(["running"]) if job.owner == owner]


def queue(catalog: Catalog, plan: Plan, to: str) -> Job:
    """Have ``plan`` carried out in the background: queued, and somebody there to do it."""
    from modelhub.jobs.run import spec_of

    source = plan.source
    job = catalog.jobs.add(
        "convert",
        source.absolute_path,
        spec_of(to, plan.output, plan.options, digest=True),
        checkpoint=source.id,
        version=source.version if source.id else 0,
        max_attempts=BACKGROUND_ATTEMPTS,
    )
    see_to_it(catalog)
    return job


def see_to_it(catalog: Catalog) -> None:
    """Make sure that somebody does what is queued: a daemon, or a worker that goes on when this process has ended."""
    from modelhub.daemon.lock import alive

    if alive(catalog):
        return
    logs = os.path.join(home.home(), "logs")
    os.makedirs(logs, exist_ok=True)
    environment = dict(os.environ, MODELHUB_HOME=home.home(), MODELHUB_CATALOG=catalog.database.url)
    with open(os.path.join(logs, "jobs.log"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelhub.jobs.worker", "--detached"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",  # it must not keep a drive busy
            env=environment,
            start_new_session=True,
        )
    # It outlives us; where we live longer (in a test, or a server), it is buried when it ends.
    threading.Thread(target=process.wait, daemon=True).start()


def slot(catalog: Catalog, most: int) -> int | None:
    """The lock of one of the ``most`` places for workers that nobody watches over: an open file, to be closed. None where all are
    taken: they do what is queued."""
    name = sha256(catalog.database.url.encode()).hexdigest()[:8]
    place = os.path.join(home.home(), "logs")
    os.makedirs(place, exist_ok=True)
    for number in range(max(1, most)):
        handle = os.open(os.path.join(place, f"jobs-{name}.{number}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
        else:
            return handle
    return None
