"""How costs are measured, compared and judged: the same for every measurement.

Each run is a process of its own (a fork, so that no run pays for imports), and its CPU seconds are
user + system of that process and of all its children that it waited for, as the kernel tells
them. Cases that are compared run by turns, in an order that moves on each round; what is compared
are the medians.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from drvm.core.units import KIB

Run = Callable[[], Mapping[str, float] | None]
"""What is measured; what it returns is kept beside its cost, under ``Cost.told``."""

Verdict = Literal["met", "missed", "told", "skipped"]


@dataclass(frozen=True)
class Bench:
    """``disk`` makes one of ``bench.data``; ``scratch`` is empty, and removed at the end."""

    disk: Callable[[str], Path]
    scratch: Path
    repeat: int


@dataclass(frozen=True, slots=True)
class Cost:
    """``peak_mib``: the largest resident size of any one process of the run."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    told: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """``limit`` is what the issue asks for, as the most that ``measured`` may be, or the least
    with ``at_least``; without one the figure only tells. ``measured`` is None where ``note``
    says why nothing was measured."""

    name: str
    measured: float | None
    limit: float | None = None
    unit: str = "x"
    note: str = ""
    at_least: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.measured is None:
            return "skipped"
        if self.limit is None:
            return "told"
        good = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if good else "missed"


def measure(run: Run) -> Cost:
    """Raises ``RuntimeError`` where the run fails; what it wrote to stderr says how."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    start_s = time.monotonic()
    child = os.fork()
    if child == 0:
        _end_with(run, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read()
    _, status, usage = os.wait4(child, 0)
    wall_s = time.monotonic() - start_s
    if status:
        raise RuntimeError(f"a run ended with {os.waitstatus_to_exitcode(status)}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(cpu_s, wall_s, usage.ru_maxrss * KIB / (KIB * KIB), json.loads(told))


def by_turns(
    cases: Mapping[str, Run], repeat: int, prepare: Callable[[str], None] = lambda _: None
) -> dict[str, list[Cost]]:
    """Every case ``repeat`` times; ``prepare`` is called before each, and not
    measured."""
    names = list(cases)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for turn in range(repeat):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            prepare(name)
            costs[name].append(measure(cases[name]))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return costs


def cpu_s(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.cpu_s for cost in costs)


def wall_s(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.wall_s for cost in costs)


def peak_mib(costs: Sequence[Cost]) -> float:
    """The worst of all runs: memory has no noise that a median should hide."""
    return max(cost.peak_mib for cost in costs)


def told(costs: Sequence[Cost], name: str) -> float:
    return statistics.median(cost.told[name] for cost in costs)


def as_rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [{**asdict(figure), "verdict": figure.verdict} for figure in figures]


def print_table(figures: Sequence[Figure]) -> None:
    wide = max((len(figure.name) for figure in figures), default=0)
    for figure in figures:
        bound = "" if figure.limit is None else f"{_sign(figure)} {figure.limit:g} {figure.unit}"
        seen = "-" if figure.measured is None else f"{figure.measured:.3g} {figure.unit}"
        if figure.measured is not None and abs(figure.measured) >= 1000:
            seen = f"{figure.measured:.0f} {figure.unit}"
        line = f"{figure.name:<{wide}}  {seen:>14}  {bound:>16}  {figure.verdict:<8}{figure.note}"
        print(line.rstrip(), flush=True)


def _sign(figure: Figure) -> str:
    return ">=" if figure.at_least else "<="


def _end_with(run: Run, writing: int) -> NoReturn:
    """In the child: it never returns, whatever happens."""
    code = 1
    try:
        os.write(writing, json.dumps(dict(run() or {})).encode())
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
