"""The measurements that stand by themselves, as lines of the one table.

Each is a command of its own that writes JSON (``python -m bench.kernel --json FILE``); what it told
becomes figures here, beside what they must reach.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.harness import Bench, Figure

Told = Mapping[str, Any]
Theme = Callable[[Bench], list[Figure]]
Rows = Sequence[Mapping[str, Any]]


def by_command(module: str, figures: Callable[[Any], list[Figure]]) -> Theme:
    """A theme that runs the command in a process of its own, by the same interpreter."""

    def run(bench: Bench) -> list[Figure]:
        path = bench.scratch / f"{module}.json"
        argv = [sys.executable, "-m", f"bench.{module}", "--json", str(path)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        return figures(json.loads(path.read_text()))

    return run


def kernel(told: Told) -> list[Figure]:
    naming = {(row["kernel"], row["data"]): row["cpu_s_per_gib"] for row in told["naming"]}
    on_random = [(cost, name) for (name, data), cost in naming.items() if data == "random"]
    least, name = min(on_random)
    found = [Figure("naming 4 KiB blocks", least, None, "cpu-s/GiB", f"{name}, random data")]
    rates = {(row["kernel"], row["keys"]): row["million_per_cpu_s"] for row in told["looking_up"]}
    largest = max(keys for _, keys in rates)
    return found + [
        Figure(f"probes of {largest >> 20} M keys, {name}", rate, None, "M/s")
        for (name, keys), rate in rates.items()
        if keys == largest
    ]


def index(told: Told) -> list[Figure]:
    found = [
        Figure("index per unique TiB", told["gb_per_tib"], 0.25, "GB", f"{told['tib']:g} TiB"),
    ]
    for name, least in (("native", 2.0), ("numpy", 0.5)):
        for kind in ("in order", "aged", "new", "cold"):
            rate = told[name][f"{kind}_per_cpu_s"] / 1e6
            title = f"look-ups, {name}, {kind}"
            wall = f"{told[name][f'{kind}_per_s'] / 1e6:.2f} M/s of wall"
            found.append(Figure(title, rate, least, "M/s", wall, at_least=True))
        peak = told[name]["resident_peak_mib"]
        found.append(Figure(f"index in memory, {name}", peak, told["memory_mib"], "MiB"))
    return found


def aged(told: Rows) -> list[Figure]:
    """The worst of its disks."""
    reads = max(told, key=lambda row: row["requests_per_gib"])
    fetched = max(told, key=lambda row: row["times_its_bytes"])
    return [
        Figure(
            "restore of an aged disk: ranged reads",
            reads["requests_per_gib"],
            200,
            "per GiB",
            f"{reads['data']}, {reads['disk_gib']} GiB",
        ),
        Figure(
            "restore of an aged disk: fetched",
            fetched["times_its_bytes"],
            3,
            "x",
            f"{fetched['data']}, {fetched['disk_gib']} GiB",
        ),
    ]


def diskmap(told: Rows) -> list[Figure]:
    return [Figure(**{k: v for k, v in row.items() if k != "verdict"}) for row in told]
