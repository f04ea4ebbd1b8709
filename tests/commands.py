"""drvm's commands in the process of the tests, which has imported all that they need."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any
from unittest import mock

from drvm.cli.main import main

LIMIT_S = 300.0


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def run_command(arguments: Sequence[str], env: Mapping[str, str], stdin: str = "") -> Result:
    """``drvm`` with these arguments, to its end: ``env`` is all that it knows, ``stdin`` all that
    it is told, neither is a terminal.

    For tests where the process itself is not the point: what kills and signals do, what children
    and other processes see, and that the command starts at all is tried with real ones.
    """
    streams = [io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8") for text in (stdin, "", "")]
    given, out, err = streams
    with (
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _own_logging(),
        _time_limit(LIMIT_S, arguments),
    ):
        code = main(arguments)
    return Result(code, _written(out), _written(err))


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """The command makes drvm's logger its own; other tests look at what is logged."""
    logger = logging.getLogger("drvm")
    before = logger.handlers, logger.propagate, logger.level
    try:
        yield
    finally:
        logger.handlers, logger.propagate, level = before
        logger.setLevel(level)


@contextlib.contextmanager
def _time_limit(limit_s: float, what: object) -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{what} took over {limit_s:g} s")

    before: Any = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
