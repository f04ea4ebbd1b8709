"""``drvm config validate|show|generate``."""

from __future__ import annotations

import click

from drvm.cli.invocation import Invocation, require_config
from drvm.config.settings import resolve
from drvm.config.show import example_text, shown_fields, shown_text


@click.group("config")
def command() -> None:
    """Check, show and generate the config file."""


@command.command("validate")
@click.pass_obj
def validate(invocation: Invocation) -> None:
    """Read the config and list every mistake in it."""
    path, config = require_config(invocation)
    resolve(config, invocation.environ)
    policies = len(config.policies)
    if invocation.output.json:
        invocation.output.document({"config": path, "valid": True, "policies": policies})
    else:
        count = f"{policies} {'policy' if policies == 1 else 'policies'}"
        invocation.output.line(f"{path} is valid ({count})")


@command.command("show")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print the config with all defaults filled in. Credentials in URLs are left out."""
    _path, config = require_config(invocation)
    if invocation.output.json:
        invocation.output.document(shown_fields(config))
    else:
        invocation.output.block(shown_text(config))


@command.command("generate")
@click.pass_obj
def generate(invocation: Invocation) -> None:
    """Print an example config in which every key is explained."""
    if invocation.output.json:
        invocation.output.document({"config": example_text()})
    else:
        invocation.output.block(example_text())
