"""Going forward: whatever the state, no byte that a guest wrote is lost."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drvm.host.model import BlockJob
from drvm.snapshot.domainxml import Disk, Layer, Machine, Mirror
from drvm.snapshot.fold import Action, next_step
from drvm.snapshot.journal import JournalDisk
from drvm.snapshot.truth import Truth

BASE = Path("/i/a")
STOOD = Path("/i/a.drvm-0123456789abcdef.overlay")
UPPER = Path("/i/a.drvm-fedcba9876543210.overlay")
OTHER = Path("/i/b")
STOOD_DISK = JournalDisk("vda", str(BASE), "raw", "file", str(STOOD), "standing")
UPPER_DISK = JournalDisk("vda", str(STOOD), "qcow2", "file", str(UPPER), "taken")
COMMIT = BlockJob("commit", 1, 2, ready=False)


def machine(*paths: Path, mirror: Mirror | None = None) -> Machine:
    layers = tuple(Layer("file", path, "qcow2") for path in paths)
    disk = Disk("vda", "disk", layers, False, False, False, None, mirror)
    return Machine("web", "u", (disk,) if paths else (), None, ())


def action(truth: Truth, *, job: BlockJob | None = None, lies_on: Path | None = STOOD) -> Action:
    return next_step(UPPER_DISK, STOOD_DISK, truth, job=job, upper_lies_on=lies_on).action


WHOLE = machine(UPPER, STOOD, BASE)
FOLDED = machine(UPPER, BASE)


def test_a_running_machine_is_folded_step_by_step() -> None:
    assert action(Truth(WHOLE, WHOLE)) is Action.COMMIT
    assert action(Truth(WHOLE, WHOLE), job=COMMIT) is Action.WAIT
    assert action(Truth(FOLDED, WHOLE)) is Action.REDEFINE
    assert action(Truth(FOLDED, FOLDED)) is Action.DONE
    assert action(Truth(FOLDED, machine(UPPER))) is Action.DONE


def test_a_machine_that_is_off_is_folded_step_by_step() -> None:
    assert action(Truth(None, WHOLE)) is Action.MERGE
    assert action(Truth(None, WHOLE), lies_on=BASE) is Action.REDEFINE
    assert action(Truth(None, FOLDED), lies_on=BASE) is Action.DONE
    assert action(Truth(None, WHOLE, saved=True)) is Action.FOREIGN


def test_a_disk_that_is_gone_goes_home_and_work_of_others_is_left_alone() -> None:
    assert action(Truth(None, None)) is Action.HOME
    assert action(Truth(machine(), machine())) is Action.HOME
    for live in (
        machine(OTHER, UPPER, STOOD, BASE),
        machine(STOOD, BASE),
        machine(BASE),
        machine(UPPER, OTHER),
        machine(UPPER, STOOD, BASE, mirror=Mirror("active-commit", STOOD, ready=False)),
    ):
        assert action(Truth(live, WHOLE)) is Action.FOREIGN
    assert action(Truth(WHOLE, WHOLE), job=BlockJob("pull", 1, 2, ready=False)) is Action.FOREIGN


paths = st.lists(st.sampled_from([UPPER, STOOD, BASE, OTHER]), max_size=4, unique=True)
mirrors = st.none() | st.builds(
    Mirror, st.just("active-commit"), st.sampled_from([BASE, STOOD, OTHER]), st.booleans()
)
machines = st.none() | st.builds(lambda chain, m: machine(*chain, mirror=m), paths, mirrors)
jobs = st.none() | st.builds(
    BlockJob, st.sampled_from(["commit", "pull"]), st.just(1), st.just(2), st.booleans()
)


@given(machines, machines, st.booleans(), jobs, st.sampled_from([None, STOOD, BASE, OTHER]))
def test_nothing_goes_that_a_chain_needs_and_nothing_is_merged_below_a_running_machine(
    live: Machine | None,
    stored: Machine | None,
    saved: bool,
    job: BlockJob | None,
    lies_on: Path | None,
) -> None:
    truth = Truth(live, stored, saved)
    found = action(truth, job=job, lies_on=lies_on)
    named = {layer.path for view in truth.views for disk in view.disks for layer in disk.layers}
    runs_on = {layer.path for disk in (live.disks if live else ()) for layer in disk.layers}
    if found is Action.DONE:
        assert STOOD not in named
        assert lies_on == BASE or runs_on
    if found is Action.MERGE:
        assert not runs_on & {UPPER, STOOD, BASE}
        assert lies_on == STOOD
    if found is Action.COMMIT:
        assert live is not None and job is None
        assert [layer.path for layer in live.disks[0].layers][:3] == [UPPER, STOOD, BASE]
    if found is Action.HOME:
        assert not named & {UPPER, STOOD, BASE}
