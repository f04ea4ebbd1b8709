"""Which point somebody means. docs: the command line, "POINT"."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from drvm.core.clock import parse_rfc3339
from drvm.core.errors import UnknownPoint, UsageError
from drvm.core.text import printable
from drvm.repository.points import Point

MIN_PREFIX = 4
_SHOWN = 8
_PREFIX = re.compile(r"[0-9a-f]{4,16}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def select(points: Sequence[Point], text: str) -> Point:
    """``VM`` (the latest good point), ``VM@latest``, ``VM@2026-11-23T04:00`` (the latest good one
    at that time; UTC where no zone is given), or a unique prefix of an id, 4 digits at least.

    ``points`` are the good ones, oldest first. A VM is named by its name or UUID. Raises
    ``UnknownPoint``, with what there is as the hint.
    """
    name, found, moment = text.rpartition("@")
    if found and moment != "latest" and not _DATE.match(moment):
        if _of_vm(points, name) and not _of_vm(points, text):
            raise _no_time(moment)
        name, found = text, ""  # the @ belongs to the VM's name
    if not found:
        by_vm = _of_vm(points, text)
        return by_vm[-1] if by_vm else _by_prefix(points, text)
    mine = _of_vm(points, name)
    if not mine:
        raise _unknown(points, f"there is no point of a VM named {printable(name, 80)!r}")
    if moment == "latest":
        return mine[-1]
    limit = moment_of(moment)
    before = [point for point in mine if parse_rfc3339(point.manifest.created) <= limit]
    if not before:
        first = mine[0].manifest.created
        raise UnknownPoint(
            f"{printable(name, 80)} has no point as old as {moment}",
            hint=f"its oldest is of {first}: drvm points lists them",
        )
    return before[-1]


def _of_vm(points: Sequence[Point], name: str) -> list[Point]:
    mine = [point for point in points if name in (point.manifest.vm, point.manifest.vm_uuid)]
    uuids = sorted({point.manifest.vm_uuid for point in mine})
    if len(uuids) > 1:
        raise UsageError(
            f"{len(uuids)} different VMs were called {printable(name, 80)!r}",
            hint=f"name one by its UUID: {', '.join(uuids[:_SHOWN])}",
        )
    return mine


def _by_prefix(points: Sequence[Point], text: str) -> Point:
    matches = [point for point in points if _PREFIX.fullmatch(text) and point.id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = ", ".join(point.id for point in matches[:_SHOWN])
        raise UnknownPoint(f"{text!r} begins the id of several points", hint=f"they are: {ids}")
    raise _unknown(points, f"there is no point or VM {printable(text, 80)!r}")


def moment_of(text: str) -> dt.datetime:
    """A time as people write it, UTC where no zone is given. Raises ``UsageError``."""
    try:
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise _no_time(text) from None


def _no_time(text: str) -> UsageError:
    return UsageError(
        f"{printable(text, 40)!r} is not a time",
        hint="write it as 2026-11-23T04:00 (UTC), or with its zone: 2026-11-23T04:00+01:00",
    )


def _unknown(points: Sequence[Point], message: str) -> UnknownPoint:
    names = sorted({point.manifest.vm for point in points})
    if not names:
        return UnknownPoint(message, hint="the repository has no points yet: drvm backup VM")
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return UnknownPoint(
        message, hint=f"there are points of {', '.join(names[:_SHOWN])}{more}: drvm points"
    )
