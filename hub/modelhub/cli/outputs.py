"""The options of what makes an output, shared by ``convert`` and ``quantize``: where it goes, how it is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from modelhub.cli.common import json_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from modelhub.plan import ConvertOptions


class SizeParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A number of bytes with a unit: 5GB, 700MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from modelhub.errors import UsageError
        from modelhub.where import quantity

        if isinstance(value, int):
            return value
        try:
            found = int(quantity(value, "size", param.opts[0] if param else "a size"))
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if found < 1:
            self.fail("it must be more than nothing", param, ctx)
        return found


class PairParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """``KEY=VALUE``, cut at the first equals sign."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, rest = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not of the form {param.metavar if param else 'KEY=VALUE'}", param, ctx)
        return key, rest


class TargetParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """``FORMAT[:RECIPE]``, completed from the plugins."""

    name = "target"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from modelhub import plugins
        from modelhub.targets import recipes_of, targets

        found = plugins.get()
        offered = [(format.name, format.title) for format in targets(found)]
        for format in targets(found):
            offered += [(f"{format.name}:{recipe.name}", recipe.title) for recipe in recipes_of(format, found).values()]
        return [CompletionItem(name, help=title) for name, title in offered if name.startswith(incomplete)]


def output_options(function: Any) -> Any:
    """The options that say where the output goes and how it is made; shared by ``convert`` and ``quantize``."""
    for option in reversed(
        (
            click.option("-o", "--output", metavar="PATH", help="Where it goes; beside the source otherwise."),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
            click.option("--force", is_flag=True, help="Replace what is there."),
            click.option(
                "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads to work with; one a core otherwise."
            ),
            click.option(
                "--max-shard-size",
                metavar="SIZE",
                type=SizeParameter(),
                help="Split the output into files of at most SIZE, like 5GB.",
            ),
            click.option("--no-verify", is_flag=True, help="Do not read the output back to compare it with its source."),
            click.option("--skip-unsupported", is_flag=True, help="Leave out tensors that cannot be converted (sparse ones)."),
            click.option("--strict", is_flag=True, help="Refuse where a tensor cannot have the dtype that the recipe says."),
            click.option(
                "--imatrix",
                metavar="FILE",
                type=click.Path(exists=True, dir_okay=False),
                help="An importance matrix: weights for what the recipe encodes.",
            ),
            click.option(
                "--tensor-type",
                "overrides",
                metavar="PATTERN=DTYPE",
                multiple=True,
                type=PairParameter(),
                help="Tensors whose names match a regular expression get this dtype; the first that matches counts.",
            ),
            click.option(
                "--target-bpw", metavar="BITS", type=click.FloatRange(0.5, 32), help="Bits per weight that the recipe aims at."
            ),
            click.option("--target-size", metavar="SIZE", type=SizeParameter(), help="Size that the recipe aims at, like 4GB."),
            click.option(
                "--set",
                "sets",
                metavar="KEY=VALUE",
                multiple=True,
                type=PairParameter(),
                help="Set a key of its metadata.",
            ),
            click.option("--unset", "unsets", metavar="KEY", multiple=True, help="Remove a key of its metadata."),
            click.option(
                "--calibration",
                metavar="PATH",
                type=click.Path(exists=True),
                help="Inputs of the model (.npz, or a directory of such) to calibrate, and to compare with.",
            ),
            click.option(
                "--atol",
                metavar="X",
                type=click.FloatRange(0),
                help="Fail where an output of the model differs by more than X ...",
            ),
            click.option("--rtol", metavar="X", type=click.FloatRange(0), help="... plus X times its size."),
            click.option("--background", is_flag=True, help="Queue it, and return at once; 'modelhub jobs' tells how far it is."),
            json_option,
        )
    ):
        function = option(function)
    return function


def convert_options(
    *,
    force: bool,
    threads: int | None,
    max_shard_size: int | None,
    no_verify: bool,
    skip_unsupported: bool,
    strict: bool,
    imatrix: str | None,
    overrides: Sequence[tuple[str, str]],
    target_bpw: float | None,
    target_size: int | None,
    sets: Sequence[tuple[str, str]],
    unsets: Sequence[str],
    calibration: str | None,
    atol: float | None,
    rtol: float | None,
    in_place: bool = False,
) -> ConvertOptions:
    """What `output_options` gave, as the plan takes it."""
    from modelhub.plan import ConvertOptions

    extra = {"calibration": os.path.abspath(calibration)} if calibration else {}
    extra |= {name: repr(value) for name, value in (("atol", atol), ("rtol", rtol)) if value is not None}
    return ConvertOptions(
        force=force,
        threads=threads,
        max_shard_size=max_shard_size or 0,
        verify=not no_verify,
        skip_unsupported=skip_unsupported,
        strict=strict,
        importance=os.path.abspath(imatrix) if imatrix else "",
        overrides=tuple(overrides),
        target_bits=target_bpw or 0.0,
        target_size=target_size or 0,
        set={**dict(sets), **dict.fromkeys(unsets)},
        in_place=in_place,
        extra=extra,
    )
