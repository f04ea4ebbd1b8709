"""Checks are patient with a guest that boots, and believe nothing that it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError, HostUnreachable
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Checker, GuestUnderTest
from drvm.drill.checks.command import CommandCheck
from drvm.host.model import GuestCommandResult
from drvm.report.model import CheckResult
from tests.fakes.clock import FakeClock
from tests.fakes.drill_host import DrilledDomain, DrillHost

BOOT_S = 60.0
COUNT = CommandCheck(("/bin/wc", "-c"), expect_output="^[1-9]")


class Lab:
    """A guest whose agent answers after ``boots_in_s``."""

    def __init__(self, boots_in_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.host = DrillHost(machines={"m": "<domain/>"})
        self.boots_in_s = boots_in_s
        self.host.agent = self._agent
        self.checker = Checker(GuestUnderTest(DrilledDomain(self.host, "m")), BOOT_S, self.clock)

    def _agent(self) -> None:
        if self.clock.passed_s < self.boots_in_s:
            raise AgentError("not connected")

    def command(
        self, check: CommandCheck, *results: GuestCommandResult, takes_s: float = 0.0
    ) -> CheckResult:
        """With these results one after the other, the last one for ever."""
        answers = [*reversed(results)]

        def answer(_argv: object) -> GuestCommandResult:
            self.clock.sleep(takes_s)
            return answers.pop() if len(answers) > 1 else answers[0]

        self.host.answer = answer
        return self.checker.run(check)


def result(exit_code: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> GuestCommandResult:
    return GuestCommandResult(exit_code, stdout, stderr)


def test_the_agent_check_waits_until_the_guest_has_booted() -> None:
    found = Lab(boots_in_s=40).checker.run(AgentCheck())
    assert found == CheckResult(
        name="agent", passed=True, seconds=40.0, detail="the agent answered"
    )


def test_the_agent_check_gives_up_when_the_time_to_boot_is_over() -> None:
    lab = Lab(boots_in_s=BOOT_S + 1)
    found = lab.checker.run(AgentCheck())
    assert not found.passed
    assert "not connected" in found.detail
    assert BOOT_S - 1 <= lab.clock.passed_s <= BOOT_S


def test_a_guest_that_never_booted_does_not_cost_the_time_again_for_each_check() -> None:
    lab = Lab(boots_in_s=10**9)
    results = [lab.checker.run(check) for check in (AgentCheck(), COUNT, COUNT)]
    assert not any(found.passed for found in results)
    assert lab.clock.passed_s <= BOOT_S


def test_a_machine_that_is_gone_fails_its_checks_at_once() -> None:
    lab = Lab(boots_in_s=10**9)
    del lab.host.machines["m"]
    found = lab.checker.run(AgentCheck())
    assert (found.passed, found.detail) == (False, "the machine is not running any more")
    assert lab.clock.passed_s == 0


def test_a_command_that_does_as_expected_passes_and_shows_its_output() -> None:
    found = Lab(boots_in_s=5).command(COUNT, result(stdout=b"12\n", stderr=b"warned"))
    assert found.passed
    assert found.detail == "exit code 0\n12\nstderr: warned"


def test_a_command_is_run_again_while_its_service_starts() -> None:
    lab = Lab()
    assert lab.command(COUNT, result(1), result(1), result(0, b"9")).passed
    assert lab.host.calls.count("run") == 3


@pytest.mark.parametrize(
    ("given_result", "words"),
    [
        (result(3, b"9", b"no such table"), "exit code 3 instead of 0"),
        (result(0, b"0\n"), "the output does not match ^[1-9]"),
    ],
)
def test_a_command_that_keeps_failing_fails_with_what_it_said(
    given_result: GuestCommandResult, words: str
) -> None:
    lab = Lab(boots_in_s=20)
    found = lab.command(COUNT, given_result)
    assert not found.passed
    assert found.detail.startswith(words)
    assert given_result.stderr.decode() in found.detail
    assert lab.clock.passed_s <= 20 + COUNT.timeout_s


def test_every_line_of_the_output_may_match() -> None:
    assert Lab().command(COUNT, result(0, b"total\n7 files\n")).passed


def test_another_exit_code_may_be_the_expected_one() -> None:
    assert Lab().command(CommandCheck(("false",), expect_exit=1), result(1)).passed


def test_no_try_begins_after_the_time_of_a_command_is_over() -> None:
    lab = Lab()
    lab.command(CommandCheck(("slow",), timeout_s=30), result(1), takes_s=20)
    assert lab.host.calls.count("run") == 2


def test_a_command_that_the_agent_refuses_says_why() -> None:
    lab = Lab()
    lab.host.fail["run"] = AgentError("Failed to execute child process (No such file)")
    found = lab.checker.run(COUNT)
    assert not found.passed
    assert "No such file" in found.detail


def test_a_lost_host_is_no_failed_check() -> None:
    lab = Lab()
    lab.host.fail["ping"] = HostUnreachable("libvirtd is gone")
    with pytest.raises(HostUnreachable):
        lab.checker.run(AgentCheck())


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.text(max_size=400))
def test_whatever_a_guest_prints_the_result_can_be_kept_and_shown(
    stdout: bytes, stderr: bytes, argument: str
) -> None:
    check = CommandCheck(("/bin/x", argument), timeout_s=0)
    found = Lab().command(check, result(1, stdout, stderr))
    assert len(found.name) <= 300
    assert len(found.detail) <= 8000
    assert found.detail.replace("\n", "").isprintable()
