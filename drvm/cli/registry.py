"""Every verb: where it lives and its one line in the help. A new command is a file and a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """``module`` below ``drvm.cli.commands`` has a click command called ``command``."""

    name: str
    module: str
    summary: str


VERBS = (
    Verb("config", "config", "Check, show and generate the config file."),
    Verb("completion", "completion", "Print the completion script of a shell."),
)
"""In the order of the help: what is used most comes first."""
