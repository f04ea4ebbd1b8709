"""``drvm config validate|show|generate``."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import click

from drvm.cli.invocation import Invocation, require_config
from drvm.config.settings import resolve

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")


@click.group("config")
def command() -> None:
    """Check, show and generate the config file."""


@command.command("validate")
@click.pass_obj
def validate(invocation: Invocation) -> None:
    """Read the config and list every mistake in it."""
    path = require_config(invocation)
    config = invocation.config()
    resolve(config, invocation.environ)
    policies = len(config.policies) if config is not None else 0
    if invocation.output.json:
        invocation.output.document({"config": path, "valid": True, "policies": policies})
    else:
        count = f"{policies} {'policy' if policies == 1 else 'policies'}"
        invocation.output.line(f"{path} is valid ({count})")


@command.command("show")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print the config with all defaults filled in. Credentials in URLs are left out."""
    require_config(invocation)
    config = invocation.config()
    assert config is not None
    fields = _redacted(config.model_dump(mode="json", by_alias=True, exclude_none=True))
    if invocation.output.json:
        invocation.output.document(fields)
        return
    import yaml

    invocation.output.block(yaml.safe_dump(fields, sort_keys=False))


@command.command("generate")
@click.pass_obj
def generate(invocation: Invocation) -> None:
    """Print an example config in which every key is explained."""
    text = resources.files("drvm.config").joinpath("config.example.yaml").read_text("utf-8")
    if invocation.output.json:
        invocation.output.document({"config": text})
    else:
        invocation.output.block(text)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return _CREDENTIALS.sub("***@", value) if isinstance(value, str) else value
