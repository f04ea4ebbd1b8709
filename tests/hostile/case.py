"""One hostile input: how it is made, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.hostile.forge import Forge

Expect = Literal["lost", "refused", "undefined", "harmless", "closed"]


@dataclass(frozen=True)
class Case:
    """``lost``: the liar's point is not restored, and a check says so. ``refused``: it is not
    restored, though nothing is damaged. ``undefined``: its disks are, its machine is not.
    ``harmless``: everything works. ``closed``: the repository can't even be opened. Everywhere but
    there all else goes on: the honest point comes back. ``forms``: of restoring, that it is put
    through; all where none is named."""

    plant: Callable[[Forge], object]
    expect: Expect
    long: bool = False
    forms: tuple[str, ...] = ()


def lost(plant: Callable[[Forge], object], *, long: bool = False) -> Case:
    return Case(plant, "lost", long)


def refused(plant: Callable[[Forge], object]) -> Case:
    return Case(plant, "refused")


def undefined(plant: Callable[[Forge], object]) -> Case:
    return Case(plant, "undefined")


def harmless(plant: Callable[[Forge], object], *, long: bool = False) -> Case:
    return Case(plant, "harmless", long)


def closed(plant: Callable[[Forge], object], *, long: bool = False) -> Case:
    return Case(plant, "closed", long)
