"""From an invocation to the wiring: what every command but the simplest begins with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.config.elsewhere import elsewhere
from drvm.config.settings import NO_OVERRIDES, Overrides, Settings
from drvm.core.errors import UsageError
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.repository.select import moment_of, select
from drvm.store.first_versions import alarms_of
from drvm.wiring.assembly import Wiring
from drvm.wiring.foreign import foreign_words

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@contextlib.contextmanager
def opened(
    invocation: Invocation, overrides: Overrides = NO_OVERRIDES, *, confirm: bool = False
) -> Iterator[Wiring]:
    """The wiring for the settings in force; ``confirm`` asks for a new passphrase twice."""
    with _wiring(invocation, invocation.settings(overrides), confirm=confirm) as wiring:
        yield wiring


def at_time(function: Decorated) -> Decorated:
    """The option ``--as-of``, for commands that only read: ``as_of`` goes to ``Overrides``."""
    return click.option(
        "--as-of",
        metavar="TIME",
        callback=lambda _context, _parameter, text: moment_of(text) if text else None,
        help="Read the repository as it was then (UTC, or with a zone); needs a bucket with "
        "versions.",
    )(function)


@contextlib.contextmanager
def opened_elsewhere(
    invocation: Invocation, text: str, password_file: Path | None
) -> Iterator[Wiring]:
    """The wiring with a second repository: one of the config's copies, or any by its URL."""
    settings = elsewhere(invocation.settings(), text, invocation.environ, password_file)
    with _wiring(invocation, settings) as wiring:
        yield wiring


def _wiring(invocation: Invocation, settings: Settings, *, confirm: bool = False) -> Wiring:
    return Wiring(
        settings,
        clock=invocation.clock,
        processes=invocation.processes,
        passphrase=lambda: invocation.password(settings, confirm=confirm),
    )


def check_place(report: Path) -> None:
    """Before the work rather than behind it. Raises ``UsageError``."""
    if report.is_dir() or not os.access(report.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"no report can be written to {report}",
            hint="name a file in a folder that is there and may be written to",
        )


def good_points(
    invocation: Invocation, repository: Repository, vm_uuid: str | None = None
) -> tuple[Point, ...]:
    return told(invocation, repository.points(vm_uuid))


def told(invocation: Invocation, listing: Listing) -> tuple[Point, ...]:
    """The good points; what can't be read is told, and does not hide the others."""
    for problem in listing.problems:
        invocation.warn(problem)
    return listing.points


def ending(wiring: Wiring) -> int:
    """The exit code of what was done in spite of what somebody did to the repository."""
    return DONE_WITH_WARNINGS if alarms_of(wiring.repository().store) else DONE


def chosen_point(invocation: Invocation, wiring: Wiring, text: str) -> Point:
    """The point that ``text`` means; one that another host wrote is never taken silently."""
    point = select(good_points(invocation, wiring.repository()), text)
    tell_foreign(invocation, wiring, point)
    return point


def tell_foreign(invocation: Invocation, wiring: Wiring, point: Point) -> None:
    """Also with ``-q``."""
    if words := foreign_words(wiring, point.manifest):
        invocation.stderr.write(f"drvm: warning: {words}\n")
