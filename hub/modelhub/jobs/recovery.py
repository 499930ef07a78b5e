"""Takes up what dead processes have left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from modelhub.jobs.identity import is_alive

if TYPE_CHECKING:
    from modelhub.catalog import Catalog
    from modelhub.catalog.jobs import Job


def recover(catalog: Catalog) -> list[Job]:
    """Take up what dead processes have left: their jobs, and their scratch. Those jobs, as they are now."""
    reaped = catalog.jobs.reap(is_alive)
    if not reaped:
        return []
    from modelhub.scratch import sweep

    for directory in {os.path.dirname(job.output) for job in reaped if job.output}:
        sweep(directory)
    return reaped
