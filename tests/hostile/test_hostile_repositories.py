"""Repositories of somebody who holds the keys and lies: every case ends with an error of drvm's
tree or does no harm, within memory and time, and nothing outside of the target is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.hostile.corpus import KINDS, PLANTED
from tests.hostile.forms import FORMS

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900.0
MAX_PEAK_MIB = 512
"""Of the process, which has 100 to begin with."""


class Tried(NamedTuple):
    """Kind -> case -> what came of it; ``said``: the end of what the process told."""

    found: dict[str, dict[str, dict[str, Any]]]
    said: str


def tried(place: Path, kinds: Iterable[str], *flags: str) -> Tried:
    (place / "tmp").mkdir()
    (place / "precious").write_text("nothing may touch this")
    (place / "vda.raw").write_text("nor this, whatever a disk is called")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(place), *kinds, *flags],
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
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
    for trial in map(json.loads, done.stdout.splitlines()):
        found[trial["kind"]][trial["name"]] = trial
    return Tried(found, done.stderr[-4000:])


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return tried(tmp_path_factory.mktemp("hostile"), KINDS)


def assert_bounded(kind: str, tried: Tried, *, long: bool) -> None:
    """All were tried, and nothing was that must not be."""
    found = tried.found[kind]
    assert set(found) == {n for n, c in KINDS[kind].items() if c.long == long}, tried.said
    assert {n: t["problems"] for n, t in found.items() if t["problems"]} == {}
    assert {n: t["peak_mib"] for n, t in found.items() if t["peak_mib"] > MAX_PEAK_MIB} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_liar_wrote_is_refused_or_harmless(kind: str, short: Tried) -> None:
    assert_bounded(kind, short, long=False)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_restoring_meets_more_than_a_hundred_hostile_points(
    form: str, short: Tried
) -> None:
    """And not all are refused by it: some come out harmless."""
    tried = [t["forms"] for kind in short.found.values() for t in kind.values()]
    said = [forms[form] for forms in tried if form in forms]
    assert len(said) >= 100
    assert 0 < sum(map(bool, said)) < len(said), said[:20]


@pytest.mark.long
@pytest.mark.parametrize("kind", [k for k in KINDS if any(c.long for c in KINDS[k].values())])
def test_what_a_liar_wrote_much_of_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    assert_bounded(kind, tried(tmp_path, [kind], "--long"), long=True)


def test_a_trial_sees_what_must_not_be(tmp_path: Path) -> None:
    found = tried(tmp_path, ["planted"]).found["planted"]
    assert {name for name, trial in found.items() if trial["problems"]} == set(PLANTED)


def test_the_corpus_is_not_small() -> None:
    counts = {kind: len(cases) for kind, cases in KINDS.items()}
    without_xml = sum(counts.values()) - counts["definitions"]
    assert without_xml >= 390 and counts["definitions"] >= 100, counts
