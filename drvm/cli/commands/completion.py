"""``drvm completion SHELL``: click's own completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from drvm.cli.invocation import Invocation
from drvm.core.errors import UsageError


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def command(invocation: Invocation, shell: str) -> None:
    """Print the completion script of SHELL: it completes verbs, options and their values.

    \b
    Examples:
      drvm completion bash > /etc/bash_completion.d/drvm
      drvm completion zsh > /usr/local/share/zsh/site-functions/_drvm
      drvm completion fish > ~/.config/fish/completions/drvm.fish
    """
    from drvm.cli.main import program

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    script = kind(program, {}, "drvm", "_DRVM_COMPLETE").source()
    if invocation.output.json:
        invocation.output.document({"shell": shell, "script": script})
    else:
        invocation.output.block(script)
