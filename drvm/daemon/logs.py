"""Logs: for people, or a JSON object in each line; what they are about goes along by itself.

Only drvm's own loggers are shown; those of libraries may quote requests with credentials. What is
known to be a secret is blotted out last of all, and no control character leaves raw.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TextIO, get_args

from drvm.core.clock import rfc3339
from drvm.core.redact import redacted
from drvm.core.text import printable

LogFormat = Literal["people", "json"]
FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
VARIABLE = "DRVM_LOG_FORMAT"

MAX_TEXT_CHARS = 10_000
_NOTHING: Mapping[str, str] = MappingProxyType({})
_about = contextvars.ContextVar("about", default=_NOTHING)

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


@contextlib.contextmanager
def about(*, job: str, run: str, vm: str = "") -> Iterator[None]:
    """What is logged meanwhile says so, also by the threads of ``drvm/core/threads.py`` that are
    begun meanwhile. ``run``: the id of the run in the record of runs."""
    token = _about.set({"job": job, "run": run, "vm": vm})
    try:
        yield
    finally:
        _about.reset(token)


class ForPeople(logging.Formatter):
    """``drvm: WARNING: words``, and a traceback below it where there is one."""

    def __init__(self) -> None:
        super().__init__("drvm: %(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)), MAX_TEXT_CHARS, lines=True)


class JsonLines(logging.Formatter):
    """``ts level logger message``, where they are known ``job run vm``, and ``exception``: the
    traceback. Pure ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        fields = {
            "ts": rfc3339(moment),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _safe(record.getMessage()),
            **{name: _safe(value) for name, value in _about.get().items() if value},
        }
        if record.exc_info:
            fields["exception"] = _safe(self.formatException(record.exc_info))
        return json.dumps(fields)


class _ForJournal(logging.Formatter):
    """Each line begins with its priority, which systemd's journal takes off (sd-daemon(3))."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        lines = self._inner.format(record).split("\n")
        return "\n".join(f"<{priority}>{line}" for line in lines)


def start_logging(stream: TextIO, log_format: LogFormat, environ: Mapping[str, str]) -> None:
    """drvm's logger goes to ``stream`` from now on; the level stays as it is."""
    formatter = JsonLines() if log_format == "json" else ForPeople()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_ForJournal(formatter) if is_journal(stream, environ) else formatter)
    logger = logging.getLogger("drvm")
    logger.handlers = [handler]
    logger.propagate = False
    if not logging.getLogger().handlers:  # or Python shows warnings of libraries by itself
        logging.getLogger().addHandler(logging.NullHandler())


def chosen_format(environ: Mapping[str, str]) -> LogFormat | None:
    """What the environment says; ``None`` also for a word that is no format."""
    return next((known for known in FORMATS if known == environ.get(VARIABLE)), None)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written there goes to systemd's journal (systemd.exec(5), JOURNAL_STREAM),
    rather than to a file or pipe that a unit's shell made of it."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _safe(text: str) -> str:
    return printable(redacted(text), MAX_TEXT_CHARS, lines=True)
