"""Repositories of somebody who holds the keys and lies: every case ends with an error of drvm's
tree or does no harm, within memory and time, and nothing outside of the target is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.corpus import KINDS, PLANTED

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900.0
MAX_PEAK_MIB = 512
"""Of the process, which has 100 to begin with."""


def trials(kind: str, place: Path, *flags: str) -> dict[str, dict[str, Any]]:
    """What came of each case, by its name."""
    (place / "tmp").mkdir()
    (place / "precious").write_text("nothing may touch this")
    (place / "vda.raw").write_text("nor this, whatever a disk is called")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", kind, str(place), *flags],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "TMPDIR": str(place / "tmp"),
            "PYTHONPATH": str(ROOT),
            "MALLOC_ARENA_MAX": "2",  # or threads reserve more address space than they use
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {trial["name"]: trial for trial in found}


def assert_bounded(found: dict[str, dict[str, Any]]) -> None:
    problems = {name: trial["problems"] for name, trial in found.items() if trial["problems"]}
    assert problems == {}
    assert {n: t["peak_mib"] for n, t in found.items() if t["peak_mib"] > MAX_PEAK_MIB} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_liar_wrote_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    found = trials(kind, tmp_path)
    assert set(found) == {name for name, case in KINDS[kind].items() if not case.long}
    assert_bounded(found)


@pytest.mark.long
@pytest.mark.parametrize("kind", [k for k in KINDS if any(c.long for c in KINDS[k].values())])
def test_what_a_liar_wrote_much_of_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    found = trials(kind, tmp_path, "--long")
    assert set(found) == {name for name, case in KINDS[kind].items() if case.long}
    assert_bounded(found)


def test_a_trial_sees_what_must_not_be(tmp_path: Path) -> None:
    found = trials("planted", tmp_path)
    assert {name for name, trial in found.items() if trial["problems"]} == set(PLANTED)


def test_the_corpus_is_not_small() -> None:
    counts = {kind: len(cases) for kind, cases in KINDS.items()}
    without_xml = sum(counts.values()) - counts["definitions"]
    assert without_xml >= 390 and counts["definitions"] >= 100, counts
