"""What a measurement says of itself: costs of whole process trees, medians, verdicts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import backups, boot, chunker, harness, parts, restores, storing
from bench.harness import Cost, Figure, by_turns, measure

KINDS = ("in order", "aged", "new", "cold")


def cost(cpu_s: float, peak_mib: float = 1.0, **told: float) -> Cost:
    return Cost(cpu_s, 2 * cpu_s, peak_mib, told)


def test_a_run_tells_its_numbers_and_leaves_this_process_as_it_was() -> None:
    changed: list[int] = []

    def run() -> dict[str, float]:
        changed.append(os.getpid())
        return {"bytes": 7}

    assert measure(run).told == {"bytes": 7}
    assert changed == []


def test_the_cpu_time_of_a_run_holds_that_of_its_children() -> None:
    burn = "while __import__('time').process_time() < 0.2: pass"

    def run() -> None:
        subprocess.run([sys.executable, "-c", burn], check=True)

    assert measure(run).cpu_s >= 0.2


def test_a_run_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ValueError("no such disk")

    with pytest.raises(RuntimeError, match="ended with 1"):
        measure(run)
    assert "no such disk" in capfd.readouterr().err


def test_cases_run_by_turns_and_each_begins_a_round() -> None:
    order: list[str] = []
    by_turns({"a": lambda: None, "b": lambda: None}, 2, order.append)
    assert order == ["a", "b", "b", "a"]


def test_medians_are_compared_but_memory_by_its_worst() -> None:
    costs = [cost(1.0, 10), cost(9.0, 90), cost(2.0, 20)]
    assert (harness.cpu_s(costs), harness.wall_s(costs)) == (2.0, 4.0)
    assert harness.peak_mib(costs) == 90


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("x", 1.2, 1.2), "met"),
        (Figure("x", 1.21, 1.2), "missed"),
        (Figure("x", 2.0, 2.0, at_least=True), "met"),
        (Figure("x", 1.9, 2.0, at_least=True), "missed"),
        (Figure("x", 5.0), "told"),
        (Figure("x", None, 2.0, note="not installed"), "skipped"),
    ],
)
def test_a_figure_judges_itself(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict
    assert harness.as_rows([figure])[0]["verdict"] == verdict


def test_a_backup_is_compared_by_the_medians_of_cpu_time() -> None:
    costs = {
        "floor": [cost(2.0, plain_bytes=2**30)] * 3,
        "null": [cost(2.8)] * 3,
        "null unverified": [cost(2.2), cost(99.0), cost(2.3)],
        "directory": [cost(3.0)] * 3,
        "directory unverified": [cost(2.8)] * 3,
        "command": [cost(3.0, peak_mib=260)] * 3,
        "restic": [cost(10.0)] * 3,
    }
    by_name = {figure.name: figure for figure in backups.figures(costs, ["restic"])}
    assert by_name["backup CPU : floor, null store, unverified"].measured == 2.3 / 2
    assert by_name["backup CPU : floor, directory, unverified"].verdict == "missed"
    assert by_name["verification adds, of the floor"].measured == pytest.approx(0.25)
    assert by_name["backup CPU : restic"].measured == 0.3
    assert by_name["backup : borg"].verdict == "skipped"
    assert by_name["peak memory of a backup"].verdict == "missed"


def test_a_restore_is_compared_by_the_wall_and_by_the_gib() -> None:
    costs = {
        "cp": [cost(1.0)] * 3,
        "restore": [cost(3.0)] * 3,
        "command": [cost(4.0)] * 3,
        "borg": [cost(16.0)] * 3,
    }
    by_name = {f.name: f for f in restores.figures(costs, 2.0, "with holes", ["borg"])}
    assert by_name["restore wall : cp --sparse, with holes"].measured == 3.0
    assert by_name["restore CPU, with holes"].measured == 1.5
    assert by_name["restore wall : borg, with holes"].measured == 0.25


def test_stored_bytes_are_compared_disk_by_disk_and_together() -> None:
    ours = dict.fromkeys("AFECG", 10.0)
    small, large = dict.fromkeys("AFECG", 100.0), dict.fromkeys("AFECG", 50.0)
    by_name = {f.name: f for f in storing.figures(ours, small, large, 99, {"E": 8.0, "G": 8.0})}
    assert by_name["stored E+C+G : fixed 64 KiB"].verdict == "met"
    assert by_name["stored E+C+G : fixed 4 MiB"].verdict == "missed"
    assert by_name["stored G : changed blocks, zstd -1"].measured == 1.25


def test_every_theme_can_be_asked_for() -> None:
    assert {"backup", "stored", "restore", "points"} <= set(chunker.THEMES)


def test_what_other_measurements_told_is_judged_too() -> None:
    naming = [{"kernel": "native", "data": "random", "cpu_s_per_gib": 0.2}]
    looking_up = [{"kernel": "native", "keys": 1 << 20, "million_per_cpu_s": 9.0}]
    rates = {f"{kind}_per{of}_s": 1e6 for kind in KINDS for of in ("_cpu", "")}
    one = {"resident_peak_mib": 70, **rates}
    aged = [
        {"disk_gib": 4, "data": "a", "requests_per_gib": 90, "times_its_bytes": 3.5},
        {"disk_gib": 64, "data": "b", "requests_per_gib": 210, "times_its_bytes": 1.5},
    ]
    told = {"tib": 10, "gb_per_tib": 0.2, "memory_mib": 64, "native": one, "numpy": one}
    kernel = parts.kernel({"naming": naming, "looking_up": looking_up})
    assert [figure.verdict for figure in kernel] == ["told", "told"]
    by_name = {figure.name: figure.verdict for figure in parts.index(told)}
    assert by_name["look-ups, native, aged"] == "missed"
    assert by_name["look-ups, numpy, aged"] == "met"
    assert by_name["index in memory, native"] == "missed"
    assert [figure.verdict for figure in parts.aged(aged)] == ["missed", "missed"]
    rows = harness.as_rows([Figure("metadata", 3.0, 4, "%"), Figure("nodes", 3.0, 2, "MiB")])
    assert [figure.verdict for figure in parts.diskmap(rows)] == ["met", "missed"]


def test_boots_are_judged_against_the_local_one_by_medians() -> None:
    seconds = {
        "local": [4.0, 5.0, 9.0],
        "boot, loopback": [11.0],
        "again, loopback": [9.0, 10.0, 30.0],
        "again, 20 ms": [19.0],
        "pull, loopback": [4.0],
    }
    found = {figure.name: figure for figure in boot.figures(seconds, mib=40)}
    assert found["boot over loopback : local boot"].verdict == "missed"
    assert found["again over loopback : local boot"].measured == 2.0
    assert found["again over 20 ms : local boot"].verdict == "met"
    assert found["pull over loopback"].measured == 10.0
    assert "pull over 20 ms" not in found
