"""A drill measures what it does, says what it proved, and leaves nothing, whatever happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from drvm.config.load import parse_config
from drvm.core.clock import SystemClock
from drvm.core.errors import AgentError, DamageFound, HostError, Interrupted
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.command import CommandCheck
from drvm.drill.plan import DrillPlan
from drvm.drill.room import LOW_BYTES, RESERVE_BYTES
from drvm.drill.run import run_drill
from drvm.drill.statements import not_proven
from drvm.host.model import GuestCommandResult
from drvm.host.places import StatePlaces
from drvm.host.tpm import read_state, state_directory
from drvm.report.model import DrillResult, decode_drill, encode_drill
from tests.fakes.drill_host import PNG
from tests.unit.drill.conftest import DEFINITION, Scan, Stage

COMMAND = CommandCheck(("/bin/count",), timeout_s=10)
STEPS = ("restore", "create-network", "start", "ping", "run", "screenshot")


def drill(
    stage: Stage, plan: DrillPlan | None = None, steps: list[str] | None = None
) -> DrillResult:
    tools = stage.tools((steps if steps is not None else []).append)
    return run_drill(plan or stage.plan(checks=(AgentCheck(), COMMAND)), tools)


def boots_in(stage: Stage, seconds: float) -> None:
    started: list[float] = []

    def agent() -> None:
        started.append(stage.clock.passed_s)
        if stage.clock.passed_s < started[0] + seconds:
            raise AgentError("not yet")

    stage.host.agent = agent


def test_a_drill_whose_checks_pass_is_passed_and_can_be_kept(stage: Stage) -> None:
    result = drill(stage)
    assert result.passed
    assert result.failure == ""
    assert [check.passed for check in result.checks] == [True, True]
    assert result.screenshot_png == PNG
    assert result.data_bytes == 4096
    assert decode_drill(encode_drill(result)) == result
    assert stage.is_clean()


def test_rto_counts_from_the_first_byte_asked_to_the_last_check_passed(stage: Stage) -> None:
    boots_in(stage, 30)
    plan = dataclasses.replace(stage.plan(checks=(AgentCheck(), COMMAND)), plan_s=2.0)
    stage.clock.sleep(1000)  # somebody reads the plan
    result = drill(stage, plan)
    assert result.rto_seconds == 2 + 100 + 30
    assert result.phases == {"plan": 2.0, "data": 100.0, "define": 0.0, "boot": 30.0, "checks": 0.0}


def test_the_parts_of_the_rto_add_up_to_it_and_a_scan_of_the_disks_is_none(stage: Stage) -> None:
    boots_in(stage, 30)
    result = drill(stage, stage.plan(checks=(Scan(stage), AgentCheck(), COMMAND)))
    assert result.phases.pop("scan") == 60
    assert sum(result.phases.values()) == result.rto_seconds == 130


def test_a_drill_that_only_looks_at_disks_does_not_claim_that_the_machine_came_up(
    stage: Stage,
) -> None:
    words = "that it came up: it was started, and no check asked it anything"
    assert words in drill(stage, stage.plan(checks=(Scan(stage),))).not_proven
    assert words not in drill(stage).not_proven


def test_rpo_is_the_age_of_the_point_when_the_drill_began(stage: Stage) -> None:
    assert drill(stage).rpo_seconds == 3 * 3600


def test_targets_are_kept_beside_the_verdict(stage: Stage) -> None:
    result = drill(stage, stage.plan(rto_target_s=1.0, rpo_target_s=1.0))
    assert (result.passed, result.rto_met, result.rpo_met) == (True, False, False)


def test_a_point_from_the_future_is_a_warning(stage: Stage) -> None:
    plan = stage.plan()
    future = dataclasses.replace(plan, created=plan.started.replace(year=2030))
    result = drill(stage, future)
    assert result.rpo_seconds == 0
    assert any("future" in warning for warning in result.warnings)


def test_the_guest_runs_in_isolation_between_directory_and_checks(stage: Stage) -> None:
    steps: list[str] = []
    drill(stage, steps=steps)
    assert steps == [
        *("directory-made", "restored vda", "network-made", "machine-started"),
        *("checks-ended", "machine-ended", "network-destroyed", "directory-removed", "torn-down"),
    ]


def test_a_check_that_fails_fails_the_drill_and_leaves_a_picture(stage: Stage) -> None:
    stage.host.answer = lambda _: GuestCommandResult(3, b"", b"\x1b[31mno table")
    result = drill(stage)
    assert (result.passed, result.rto_seconds, result.failure) == (False, None, "")
    assert [check.passed for check in result.checks] == [True, False]
    assert "\\x1b[31mno table" in result.checks[1].detail
    assert result.screenshot_png == PNG
    assert decode_drill(encode_drill(result)) == result
    assert stage.is_clean()


def test_a_guest_that_never_boots_fails_the_drill_in_bounded_time(stage: Stage) -> None:
    boots_in(stage, 10**9)
    result = drill(stage)
    assert not result.passed
    assert result.phases["boot"] <= 300
    assert result.screenshot_png == PNG
    assert stage.is_clean()


@pytest.mark.parametrize("step", STEPS[:4])
def test_whatever_breaks_off_is_a_failed_drill_and_everything_is_torn_down(
    stage: Stage, step: str
) -> None:
    stage.host.fail[step] = HostError(f"{step} broke")
    result = drill(stage)
    assert not result.passed
    assert result.rto_seconds is None
    assert f"{step} broke" in result.failure
    assert decode_drill(encode_drill(result)) == result
    assert stage.is_clean()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_or_a_bug_anywhere_tears_everything_down(
    stage: Stage, step: str, error: type[BaseException]
) -> None:
    stage.host.fail[step] = error()
    with pytest.raises(error):
        drill(stage)
    assert stage.is_clean()


@pytest.mark.parametrize("step", ["directory-made", "restored vda", "network-made", "checks-ended"])
def test_a_disk_that_fills_up_is_a_failed_drill(stage: Stage, step: str) -> None:
    def trace(name: str) -> None:
        if name == step:
            raise OSError(28, "No space left on device")

    result = run_drill(stage.plan(), stage.tools(trace))
    assert not result.passed
    assert "No space left" in result.failure
    assert stage.is_clean()


def test_a_guest_that_leaves_others_no_room_is_ended_and_its_drill_fails(stage: Stage) -> None:
    left, clock = [1 << 40], SystemClock()

    def agent() -> None:
        left[0] = LOW_BYTES - 1  # it writes as soon as it runs
        deadline_s = clock.monotonic_s() + 20
        while stage.host.machines and clock.monotonic_s() < deadline_s:
            clock.sleep(0.01)

    stage.host.agent = agent
    tools = dataclasses.replace(stage.tools(), free=lambda _: left[0])
    result = run_drill(stage.plan(checks=(AgentCheck(), COMMAND)), tools)
    assert (result.passed, result.rto_seconds) == (False, None)
    assert "was ended" in result.failure
    assert "1.5 GiB left" in result.failure
    assert stage.is_clean()


def test_a_drill_is_ended_before_a_backup_beside_it_is_given_up() -> None:
    reserve = parse_config(b"{}", "config.yaml", {}).overlay_reserve_bytes
    assert reserve < LOW_BYTES < RESERVE_BYTES


@pytest.mark.parametrize("step", ["machine-started", "checks-ended"])
def test_a_libvirtd_that_is_restarted_costs_no_drill_and_leaves_nothing(
    stage: Stage, step: str
) -> None:
    def trace(name: str) -> None:
        if name == step:
            stage.host.away = 20

    result = run_drill(stage.plan(checks=(AgentCheck(), COMMAND)), stage.tools(trace))
    assert (result.passed, result.failure, result.warnings) == (True, "", ())
    assert stage.is_clean()


def test_a_libvirtd_that_stays_away_ends_the_drill_in_bounded_time(stage: Stage) -> None:
    def trace(name: str) -> None:
        if name == "machine-started":
            stage.host.away = 10**9

    begun_s = stage.clock.passed_s
    result = run_drill(stage.plan(), stage.tools(trace))
    assert not result.passed
    assert "no connection to libvirt" in result.failure
    assert any("could not be ended" in warning for warning in result.warnings)
    assert stage.clock.passed_s - begun_s < 100 + 60 + 15 + 5


def test_damage_found_on_the_way_fails_the_drill_before_anything_starts(stage: Stage) -> None:
    stage.host.fail["restore"] = DamageFound("leaf 0 of a disk is not what it should be")
    result = drill(stage)
    assert "leaf 0" in result.failure
    assert "start" not in stage.host.calls
    assert result.proven == ()


@pytest.mark.parametrize("call", ["destroy", "destroy-network"])
def test_what_could_not_be_torn_down_is_a_warning_and_keeps_the_directory_as_its_mark(
    stage: Stage, call: str
) -> None:
    stage.host.fail[call] = HostError("libvirtd is busy")
    result = drill(stage)
    assert result.passed
    assert any("libvirtd is busy" in warning for warning in result.warnings)
    assert len([*stage.directory.iterdir()]) == 1
    assert "destroy-network" in stage.host.calls


def test_a_guest_without_a_screen_is_a_warning(stage: Stage) -> None:
    stage.host.fail["screenshot"] = HostError("no screen")
    result = drill(stage)
    assert result.passed
    assert result.screenshot_png is None
    assert any("no screen" in warning for warning in result.warnings)


def test_what_was_proven_is_what_was_reached(stage: Stage) -> None:
    stage.host.answer = lambda _: GuestCommandResult(3, b"", b"")
    proven = "\n".join(drill(stage).proven)
    assert "every stored block of 1 disk (4.0 KiB) was read back" in proven
    assert "its agent answered" in proven
    assert "/bin/count" not in proven


def test_what_is_not_proven_is_said(make: Callable[..., Stage]) -> None:
    stage = make(definition=DEFINITION.replace("type='qemu'", "type='kvm'", 1), warnings=("hm",))
    result = drill(stage, stage.plan(virt_type="qemu"))
    said = "\n".join(result.not_proven)
    for words in (
        *("crash-consistent", "isolated", "name or UUID", "emulated"),
        *("left out of the drilled machine: hostdev pci 0000:3b:00.0", "the RTO counts"),
    ):
        assert words in said
    assert "said when the point was made: hm" in result.warnings


def test_the_guests_user_can_reach_the_images_and_list_nothing(stage: Stage) -> None:
    plan = stage.plan()
    modes: list[int] = []

    def trace(_: str) -> None:
        if plan.directory.exists():
            modes.append(plan.directory.stat().st_mode & 0o777)

    run_drill(plan, stage.tools(trace))
    assert set(modes) == {0o711}


def test_the_nvram_of_the_point_lies_where_the_machine_looks_for_it(
    make: Callable[..., Stage],
) -> None:
    efi = DEFINITION.replace("<os>", "<os firmware='efi'>")
    stage = make(definition=efi, nvram=b"variables")
    stage.host.firmwares = frozenset({"bios", "efi"})
    plan = stage.plan()
    assert f"<nvram>{plan.nvram_path}</nvram>" in plan.definition.xml
    seen: list[bytes] = []
    stage.host.agent = lambda: seen.append(plan.nvram_path.read_bytes())
    assert drill(stage, plan).passed
    assert seen == [b"variables"]


def test_a_machine_that_had_to_begin_with_empty_firmware_settings_says_so(
    make: Callable[..., Stage],
) -> None:
    for nvram in (None, b"variables"):
        stage = make(definition=DEFINITION.replace("<os>", "<os firmware='efi'>"), nvram=nvram)
        stage.host.firmwares = frozenset({"bios", "efi"})
        said = any("firmware settings" in line for line in drill(stage).not_proven)
        assert said == (nvram is None)


@pytest.mark.parametrize("fails", [None, "start"])
def test_the_tpm_state_of_the_point_is_there_for_the_start_and_gone_after_it(
    make: Callable[..., Stage], tmp_path: Path, fails: str | None
) -> None:
    tpm = "<tpm><backend type='emulator' version='2.0'/></tpm></devices>"
    state = {"tpm2-00.permall": b"secrets"}
    stage = make(definition=DEFINITION.replace("</devices>", tpm), tpm=state)
    root = tmp_path / "swtpm"
    root.mkdir()
    stage.host.places = StatePlaces(nvram=tmp_path, tpm=root, machines=tmp_path)
    if fails is not None:
        stage.host.fail[fails] = HostError("no")
    seen: list[dict[str, bytes]] = []
    plan = stage.plan()
    uuid = fromstring(plan.definition.xml).findtext("uuid")
    where = state_directory(root, uuid, "2.0")

    def trace(step: str) -> None:
        if step == "tpm-state-placed":
            seen.append(read_state(where))

    result = run_drill(plan, stage.tools(trace))
    assert result.passed == (fails is None)
    assert seen == [state]
    assert list(root.iterdir()) == []
    assert not any("TPM" in line for line in result.not_proven)


def test_a_machine_that_had_to_begin_with_an_empty_tpm_says_so(make: Callable[..., Stage]) -> None:
    tpm = "<tpm><backend type='emulator' version='2.0'/></tpm></devices>"
    stage = make(definition=DEFINITION.replace("</devices>", tpm))
    assert any("what its TPM holds" in line for line in drill(stage).not_proven)


def test_a_tpms_state_that_can_not_be_carried_to_another_host_is_said_to_be_there(
    make: Callable[..., Stage],
) -> None:
    tpm = "<tpm><backend type='emulator' version='2.0'/></tpm></devices>"
    definition = DEFINITION.replace("</devices>", tpm)
    stage = make(definition=definition, tpm={"tpm2-00.permall": b"secrets"})
    (said,) = (line for line in not_proven(stage.plan_there()) if "TPM" in line)
    assert "can't be carried to another host" in said


@pytest.mark.parametrize("answers", [True, False])
def test_a_guest_that_was_stopped_as_its_disks_failed_has_not_come_up(
    stage: Stage, answers: bool
) -> None:
    """Whatever its checks found before: as text on its console."""
    if not answers:
        stage.host.fail["ping"] = AgentError("silent")
    plan = stage.plan(checks=(AgentCheck(), COMMAND))
    stage.host.stopped.add(plan.name)
    result = drill(stage, plan)
    assert (result.passed, stage.is_clean()) == (False, True)
    assert "stopped, as vda could not be read or written" in result.failure
    assert result.screenshot_png == PNG


def test_a_machine_that_ended_by_itself_has_not_come_up(stage: Stage) -> None:
    plan = stage.plan()
    stage.host.agent = stage.host.machines.clear
    result = drill(stage, plan)
    assert (result.passed, stage.is_clean()) == (False, True)
    assert "ended by itself" in result.failure


@pytest.mark.parametrize("step", ["destroy", "destroy-network"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_a_signal_while_it_is_taken_down_ends_the_command_when_all_is_gone(
    stage: Stage, step: str, error: type[BaseException]
) -> None:
    """It raises once, wherever the program is; nobody may swallow it."""
    stage.host.once[step] = error("ended by SIGTERM")
    with pytest.raises(error):
        drill(stage)
    assert stage.is_clean()
