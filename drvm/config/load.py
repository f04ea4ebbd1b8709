"""Config file -> ``Config``, or every mistake in it at once, each with its line."""

from __future__ import annotations

import difflib
import os
import stat
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from drvm.config import document
from drvm.config.checks import CHECKS, CheckConfig, Kinds, section_of_checks
from drvm.config.document import Document, Mistake
from drvm.config.model import Config
from drvm.core.errors import ConfigError
from drvm.core.text import printable

DEFAULT_PATH = Path("/etc/drvm/config.yaml")
MAX_MISTAKES = 50

Rule = Callable[[str], str | None]
"""What is wrong with a text, or ``None``."""

_PLAIN_TEXTS = {
    "missing": "is missing",
    "string_type": "must be text (quote it)",
    "string_too_short": "must not be empty",
    "model_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
}


_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def find_config(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """``--config``, else ``DRVM_CONFIG``, else the default path if there is a file.

    ``None``: there is no config. One that was named and is missing is an error when it is read.
    """
    named = explicit or (Path(environ["DRVM_CONFIG"]) if environ.get("DRVM_CONFIG") else None)
    if named is not None:
        return named
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def load_config(
    path: Path, rules: Mapping[str, Rule], checks: Callable[[], Kinds] = dict
) -> Config:
    """Raises ``ConfigError``. ``rules`` check texts of the kinds ``schedule``, ``time_zone``;
    ``checks`` tells the kinds of drills' checks, and is asked where there is one."""
    try:
        with os.fdopen(_open_plainly(path), "rb") as stream:
            data = stream.read(document.MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(
            f"can't read the config {path}: {(reason or str(error)).lower()}",
            hint="name another by --config or DRVM_CONFIG; drvm config generate prints an example",
        ) from None
    return parse_config(data, str(path), rules, checks)


def parse_config(
    data: bytes, name: str, rules: Mapping[str, Rule], checks: Callable[[], Kinds] = dict
) -> Config:
    """``name`` is for messages. An empty document is a config of defaults."""
    read = document.read_document(data)
    config: Config | None = None
    mistakes = list(read.mistakes)
    if not (mistakes and read.value is None):
        try:
            config = Config.model_validate(
                {} if read.value is None else read.value, context={**rules, CHECKS: checks}
            )
        except ValidationError as error:
            found = [_mistake(details, read, checks) for details in error.errors()]
            mistakes += [mistake for mistake in found if not _follows(mistake, found)]
    if config is not None and not mistakes:
        return config
    mistakes.sort(key=lambda mistake: mistake.line)
    problems = [printable(str(mistake), 500) for mistake in mistakes[:MAX_MISTAKES]]
    if len(mistakes) > MAX_MISTAKES:
        problems.append(f"and {len(mistakes) - MAX_MISTAKES} more")
    raise ConfigError(
        f"the config {name} has {len(mistakes)} mistake{'s' * (len(mistakes) != 1)}",
        problems=problems,
        hint="config.example.yaml and drvm config generate explain every key",
    )


def _open_plainly(path: Path) -> int:
    """Never hangs on a FIFO, never reads a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    return descriptor


def _mistake(details: ErrorDetails, read: Document, checks: Callable[[], Kinds]) -> Mistake:
    path = tuple(details["loc"])
    kind = details["type"]
    if kind == "extra_forbidden":
        text = _unknown_key_text(path, checks)
    elif kind == "literal_error":
        text = f"must be one of {details['ctx']['expected']}"
    elif kind == "value_error":
        text = str(details["ctx"]["error"])
    elif kind in _LIMITS:
        word, limit = _LIMITS[kind]
        text = f"must be {word} {details['ctx'][limit]}"
    else:
        text = _PLAIN_TEXTS.get(kind) or details["msg"][:1].lower() + details["msg"][1:]
    return Mistake(read.line_of(path), path, text)


def _follows(mistake: Mistake, found: list[Mistake]) -> bool:
    """A list counts as empty also because its items are wrong: then those say it all."""
    depth = len(mistake.path)
    return mistake.text == _PLAIN_TEXTS["too_short"] and any(
        len(other.path) > depth and other.path[:depth] == mistake.path for other in found
    )


def _unknown_key_text(path: document.KeyPath, checks: Callable[[], Kinds]) -> str:
    known = _known_keys(path[:-1], checks)
    key = str(path[-1])
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known here: {', '.join(known)}" if known else "no key is known here"


def _known_keys(path: document.KeyPath, checks: Callable[[], Kinds]) -> list[str]:
    """The keys that the section at ``path`` may have."""
    section: type[BaseModel] = Config
    for part in path:
        by_key = {field.alias or name: field for name, field in section.model_fields.items()}
        if isinstance(part, str) and part in by_key:
            section = _section_in(by_key[part].annotation, checks) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: object, checks: Callable[[], Kinds]) -> type[BaseModel] | None:
    """The model inside ``X | None``, ``tuple[X, ...]`` and the like."""
    if annotation is CheckConfig:
        return section_of_checks(checks())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(argument, checks) for argument in typing.get_args(annotation))
    return next((section for section in inner if section is not None), None)
