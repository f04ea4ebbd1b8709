"""The protocol loses nothing in any state of the model, and the model sees planted mistakes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from tests.model.__main__ import main, told
from tests.model.configs import CONFIGS
from tests.model.explore import explore
from tests.model.faults import FAULTS
from tests.model.world import A, B

PAGE = (Path(__file__).parents[2] / "docs/adr/027-collection.md").read_text("utf-8")
explored = functools.cache(explore)
ONLY_BY_FAULTS = {"pack-stored-late", "manifest-created-late"}
"""Nothing young is deleted, so late duplicates find what they would make."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if config.long else [])
        for name, config in CONFIGS.items()
    ],
)
def test_the_protocol_loses_nothing_in_any_state(name: str) -> None:
    result = explored(CONFIGS[name])
    assert result.violation is None, "\n".join(told(CONFIGS[name], result))


def test_every_step_of_the_protocol_is_taken_and_named_in_the_decision() -> None:
    small = ("writer", "retention", "rewriter-two-collectors", "two-collectors")
    taken = frozenset().union(*(explored(CONFIGS[name]).steps for name in small))
    named = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE))
    assert taken == named
    assert not taken & ONLY_BY_FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_mistake_is_found_and_its_trace_is_told(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--fault", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert lines[1].startswith("  1. ")
    assert "no violation" not in lines[-1]


def test_a_state_is_the_same_when_it_is_unpacked() -> None:
    for config in CONFIGS.values():
        world = config.start()
        assert config.unpacked(config.packed(world)) == world


def test_the_old_point_is_good_and_has_its_packs_in_the_beginning() -> None:
    for config in CONFIGS.values():
        world = config.start()
        assert world.manifests & world.ok & 1
        assert world.needs[0] == config.packs & (A | B)
