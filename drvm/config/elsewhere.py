"""A second repository: where copies go, and what repair reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from drvm.config.model import Config
from drvm.config.repositories import CopyConfig
from drvm.config.settings import Overrides, PasswordFile, Settings, resolve
from drvm.core.errors import UsageError
from drvm.core.text import printable


def copy_named(settings: Settings, text: str) -> CopyConfig | None:
    """The section of ``copies`` that ``text`` means by its name or its URL; ``None`` for another
    URL. Raises ``UsageError`` for a name that there is not."""
    for copy in settings.copies:
        if text in (copy.name, copy.repository.url):
            return copy
    if ":" in text:
        return None
    names = ", ".join(copy.name for copy in settings.copies)
    raise UsageError(
        f"the config names no copy {printable(text, 80)!r}",
        hint=f"name a URL, or one of its copies: {names}"
        if names
        else "name a URL: s3://bucket/prefix",
    )


def elsewhere(
    settings: Settings,
    text: str,
    environ: Mapping[str, str],
    password_file: Path | None = None,
) -> Settings:
    """The same settings with the repository that ``text`` names. Its passphrase is never that of
    the variables, which belong to the first one. Raises ``UsageError``."""
    copy = copy_named(settings, text)
    section = copy.repository if copy is not None else None
    others = {name: value for name, value in environ.items() if not name.startswith("DRVM_")}
    url = Overrides(repository_url=text if section is None else section.url)
    found = resolve(Config(repository=section), others, url)
    return replace(
        settings,
        repository=found.repository,
        as_of=None,
        password=found.password if password_file is None else PasswordFile(password_file),
    )
