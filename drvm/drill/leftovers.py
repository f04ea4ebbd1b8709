"""What drills left whose process was killed: found first, then removed.

Looking changes nothing. What can't be attributed to a dead drill is named and left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import Locked
from drvm.drill.place import (
    Note,
    is_drill_name,
    is_empty,
    noted,
    remove,
    taken_over,
    tear_down,
)
from drvm.host.model import Host
from drvm.restore.targets.volume_lease import lease_token, owner_token


@dataclass(frozen=True, slots=True)
class Leftover:
    """A drill that no process works on any more. ``parts``: for people, what would be removed."""

    directory: Path
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """``left_alone``: lines for people, about what looks like a drill's and is not known to be."""

    dead: tuple[Leftover, ...]
    left_alone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """``problems`` is empty where everything is gone, or says what is left."""

    directory: Path
    problems: tuple[str, ...]


def find_leftovers(host: Host, *directories: Path) -> Leftovers:
    """Those of drills on ``host`` whose directories lie below ``directories``, on this machine.
    Raises ``HostError``."""
    networks = [name for name in host.network_names() if is_drill_name(name)]
    dead: list[Leftover] = []
    alone: list[str] = []
    places = [place for directory in directories for place in _places(directory)]
    for place in places:
        if not _is_of(host, place):
            continue
        try:
            with taken_over(place):
                dead.append(Leftover(place, _parts(host, place, networks)))
        except Locked:
            continue  # its process lives
        except FileNotFoundError:
            empty = is_empty(place)
            if empty:
                dead.append(Leftover(place, (str(place),)))
            elif empty is not None:
                alone.append(f"{place} has no lock file: no drill is known to have made it")
    known = {place.name for place in places}
    alone += [
        f"network {name}: no directory of its drill is known; virsh net-destroy ends it"
        for name in networks
        if name not in known
    ]
    return Leftovers(tuple(dead), tuple(alone))


def remove_leftovers(host: Host, found: Leftovers) -> tuple[Removed, ...]:
    """Remove what is still there and still nobody's. May be called again."""
    removed = []
    for leftover in found.dead:
        try:
            with taken_over(leftover.directory):
                problems = tear_down(host, leftover.directory)
        except Locked:
            continue
        except FileNotFoundError:
            problems = _remove_empty(leftover.directory)
        removed.append(Removed(leftover.directory, tuple(problems)))
    return tuple(removed)


def find_noted(uri: str, *directories: Path) -> tuple[Leftover, ...]:
    """Of dead drills on a host that is not asked. ``parts``: what may still be there."""
    found = []
    for place in (place for directory in directories for place in _places(directory)):
        note = noted(place)
        if note is not None and note.uri == uri:
            with contextlib.suppress(Locked, FileNotFoundError), taken_over(place):
                found.append(Leftover(place, _perhaps(place, note)))
    return tuple(found)


def forget(found: Sequence[Leftover]) -> tuple[Removed, ...]:
    """Remove what is here of them, and so all that is known of them. What their host has of them
    stays there."""
    removed = []
    for leftover in found:
        problems = []
        try:
            with taken_over(leftover.directory):
                remove(leftover.directory)
        except (Locked, FileNotFoundError):
            continue
        except OSError as problem:
            problems = [f"{leftover.directory} could not be removed: {problem.strerror}"]
        removed.append(Removed(leftover.directory, tuple(problems)))
    return tuple(removed)


def hosts_noted(*directories: Path) -> tuple[str, ...]:
    """The URIs of hosts on which drills were that are noted below ``directories``."""
    notes = (noted(place) for directory in directories for place in _places(directory))
    return tuple(sorted({note.uri for note in notes if note is not None}))


def _is_of(host: Host, place: Path) -> bool:
    """Before its host is noted, a drill has made nothing but its directory."""
    note = noted(place)
    return not host.remote if note is None else note.uri == host.uri


def _places(directory: Path) -> list[Path]:
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [e for e in entries if is_drill_name(e.name) and e.is_dir() and not e.is_symlink()]


def _parts(host: Host, place: Path, networks: list[str]) -> tuple[str, ...]:
    parts = [f"machine {place.name}"] if host.find_domain(place.name) is not None else []
    parts += [f"network {place.name}"] if place.name in networks else []
    note = noted(place)
    if note is not None and note.pool:
        for name in sorted(host.storage.names(note.pool)):
            if note.token in (owner_token(name), lease_token(name)):
                parts.append(f"volume {name}")
    return (*parts, str(place))


def _perhaps(place: Path, note: Note) -> tuple[str, ...]:
    parts = (f"machine {place.name}", f"network {place.name}")
    return (*parts, f"volumes of pool {note.pool} with {note.token}") if note.pool else parts


def _remove_empty(place: Path) -> list[str]:
    try:
        place.rmdir()
    except FileNotFoundError:
        return []
    except OSError as problem:
        return [f"{place} could not be removed: {problem.strerror}"]
    return []
