"""Runs a plugin's `Program`: a conversion that is a tool, not a table. In a worker of its own, under limits; never fused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from modelhub.declared import ProgramResult
from modelhub.engine.write import Written
from modelhub.errors import ConversionError
from modelhub.files import Checkpoint
from modelhub.plan import Plan

MEMORY = 16 << 30
"""Bytes that a program may take where it gives no estimate."""
ADDRESSES = 8 << 30
"""On top of an estimate: what libraries and threads reserve of a process's address space, which is what is limited, and never
touch."""
SECONDS = 24 * 3600.0
"""A conversion may take hours; one that takes longer than this hangs."""


def run(plan: Plan, output: str) -> Written:
    """Have the plan's program write ``output`` (a file or a directory in a scratch directory); what stands there afterwards."""
    from modelhub.workers import ParsePool

    program = plan.program
    assert program is not None
    memory = MEMORY if plan.memory is None else ADDRESSES + plan.memory
    model = plan.source
    with ParsePool(processes=1, memory=memory) as pool:
        result = pool.call(
            call, program.name, model.absolute_path, model.file_paths, output, dict(plan.options.extra), seconds=SECONDS
        )
    base = output if not plan.format.extension else os.path.dirname(output)
    files = [os.path.relpath(os.path.join(folder, name), base) for folder, _, names in os.walk(base) for name in names]
    if not files:
        raise ConversionError(f"{program.name} ended without an output", "please tell the plugin's author")
    nbytes = sum(os.path.getsize(os.path.join(base, file)) for file in files)
    return Written(files=sorted(files), nbytes=nbytes, result=result)


def call(name: str, path: str, files: Sequence[str], output: str, options: Mapping[str, str]) -> ProgramResult:
    """The worker's part."""
    from modelhub import plugins
    from modelhub.declared import Program

    edges = [edge for edge in plugins.get().conversions if isinstance(edge, Program) and edge.name == name]
    checkpoint = Checkpoint(path, files)
    try:
        return edges[0].run(checkpoint, output, options) or ProgramResult()
    finally:
        checkpoint.close()
