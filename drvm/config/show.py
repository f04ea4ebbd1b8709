"""A config written back as people would write it, without credentials."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import yaml

from drvm.config.model import Config

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")


def shown_fields(config: Config) -> dict[str, Any]:
    """Every key that has a value, defaults included; it loads again as the same config unless
    there was a ``user:password@`` in a URL to hide."""
    fields: dict[str, Any] = _redacted(
        config.model_dump(mode="json", by_alias=True, exclude_none=True)
    )
    return fields


def shown_text(config: Config) -> str:
    """The same as YAML."""
    return yaml.safe_dump(shown_fields(config), sort_keys=False)


def example_text() -> str:
    """``config.example.yaml``."""
    return resources.files(__package__).joinpath("config.example.yaml").read_text("utf-8")


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return _CREDENTIALS.sub("***@", value) if isinstance(value, str) else value
