"""``modelhub completion``: the shell's completion script. What it completes is asked of ``modelhub`` itself: see
`modelhub.cli.common`."""

from __future__ import annotations

import click

from modelhub.cli.app import COMPLETE, app, define


@define(
    "completion",
    examples=[
        'eval "$(modelhub completion bash)"                               # in ~/.bashrc',
        'eval "$(modelhub completion zsh)"                                # in ~/.zshrc',
        "modelhub completion fish > ~/.config/fish/completions/modelhub.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """It completes commands, options, formats, and the models of the catalog."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    script = kind(app, {}, "modelhub", COMPLETE)
    # Not .source(): it runs the shell to ask for its version, which is none of our business here.
    click.echo(script.source_template % script.source_vars())
    return 0
