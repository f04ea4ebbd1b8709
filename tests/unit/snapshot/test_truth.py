"""The decision what to do with a disk: whatever the state, no byte that a guest wrote is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.snapshot.domainxml import Disk, Layer, Machine, Mirror
from drvm.snapshot.journal import JournalDisk, Phase
from drvm.snapshot.truth import Action, Truth, next_step

BASE, OVERLAY, OTHER = Path("/i/a"), Path("/i/a.drvm-0123456789abcdef.overlay"), Path("/i/b")
PHASES: tuple[Phase, ...] = get_args(Phase)
PLANNED = JournalDisk("vda", str(BASE), "raw", "file", str(OVERLAY))


def machine(*paths: Path, mirror: Mirror | None = None) -> Machine:
    layers = tuple(Layer("file", path, "qcow2") for path in paths)
    disk = Disk("vda", "disk", layers, False, False, False, None, mirror)
    return Machine("web", "u", (disk,) if paths else (), None, ())


def action(phase: Phase, truth: Truth, *, exists: bool = True, elsewhere: bool = False) -> Action:
    disk = replace(PLANNED, phase=phase)
    return next_step(disk, truth, overlay_exists=exists, base_used_elsewhere=elsewhere).action


ON_OVERLAY = machine(OVERLAY, BASE)
ON_BASE = machine(BASE)
GONE = machine()
OURS = Mirror("active-commit", BASE, ready=False)


@pytest.mark.parametrize("phase", PHASES)
def test_a_running_machine_on_the_overlay_is_committed_whatever_the_journal_says(
    phase: Phase,
) -> None:
    assert action(phase, Truth(ON_OVERLAY, ON_OVERLAY)) is Action.COMMIT
    mirrored = machine(OVERLAY, BASE, mirror=OURS)
    assert action(phase, Truth(mirrored, ON_OVERLAY)) is Action.PIVOT


@pytest.mark.parametrize("phase", PHASES)
def test_a_machine_that_is_off_on_the_overlay_is_merged_whatever_the_journal_says(
    phase: Phase,
) -> None:
    assert action(phase, Truth(None, ON_OVERLAY)) is Action.MERGE


def test_a_saved_memory_keeps_its_disks_as_they_are() -> None:
    assert action("taken", Truth(None, ON_OVERLAY, saved=True)) is Action.FOREIGN


@pytest.mark.parametrize("phase", ["planned", "requested", "pivoting", "merged"])
def test_an_overlay_that_was_never_used_or_was_put_back_by_us_goes(phase: Phase) -> None:
    for truth in (Truth(ON_BASE, ON_BASE), Truth(None, ON_BASE)):
        assert action(phase, truth) is Action.DONE


@pytest.mark.parametrize("phase", ["taken", "committing", "merging"])
def test_an_overlay_that_somebody_else_took_out_of_use_stays(phase: Phase) -> None:
    for truth in (Truth(ON_BASE, ON_BASE), Truth(None, ON_BASE)):
        assert action(phase, truth) is Action.FOREIGN
        assert action(phase, truth, exists=False) is Action.DONE


def test_a_disk_that_was_unplugged_is_merged_unless_the_pivot_may_have_happened() -> None:
    for truth in (Truth(GONE, GONE), Truth(None, None)):
        assert action("taken", truth) is Action.MERGE
        assert action("pivoting", truth) is Action.FOREIGN
        assert action("planned", truth) is Action.DONE
        assert action("taken", truth, elsewhere=True) is Action.FOREIGN


def test_a_stored_definition_left_on_the_overlay_is_lowered_without_a_merge() -> None:
    assert action("pivoting", Truth(ON_BASE, ON_OVERLAY)) is Action.REDEFINE


def test_work_of_others_is_left_alone() -> None:
    theirs = machine(OTHER, OVERLAY, BASE)
    deeper = machine(OVERLAY, BASE, mirror=Mirror("active-commit", OTHER, ready=True))
    copied = machine(OVERLAY, BASE, mirror=Mirror("copy", BASE, ready=True))
    moved = machine(OVERLAY, OTHER)
    for live in (theirs, deeper, copied, moved):
        assert action("taken", Truth(live, ON_OVERLAY)) is Action.FOREIGN
    assert action("taken", Truth(None, theirs)) is Action.FOREIGN


chains = st.sampled_from(
    [(), (BASE,), (OVERLAY,), (OVERLAY, BASE), (OTHER, OVERLAY, BASE), (OTHER,), (OVERLAY, OTHER)]
)
mirrors = st.none() | st.builds(
    Mirror,
    st.sampled_from(["active-commit", "copy"]),
    st.sampled_from([BASE, OVERLAY, OTHER]),
    st.booleans(),
)
machines = st.none() | st.builds(lambda c, m: machine(*c, mirror=m), chains, mirrors)


@given(st.sampled_from(PHASES), machines, machines, st.booleans(), st.booleans(), st.booleans())
def test_nothing_is_removed_that_a_chain_names_and_nothing_merged_that_a_machine_runs_on(
    phase: Phase,
    live: Machine | None,
    stored: Machine | None,
    saved: bool,
    exists: bool,
    elsewhere: bool,
) -> None:
    truth = Truth(live, stored, saved)
    found = action(phase, truth, exists=exists, elsewhere=elsewhere)
    named = any(disk.names(OVERLAY) for view in truth.views for disk in view.disks)
    if found is Action.DONE:
        assert not named
        assert not exists or phase in ("planned", "requested", "pivoting", "merged")
    if found is Action.MERGE:
        assert live is None or not any(d.names(OVERLAY) or d.names(BASE) for d in live.disks)
        assert named or phase != "pivoting"
