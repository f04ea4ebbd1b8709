"""What keeps a check from being made is said when the drill is planned, with the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import DrvmError, Interrupted, ProcessFailed, RestoreError
from drvm.core.process import Output
from drvm.drill import ways
from drvm.drill.checks import malware
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Check, Exports, GuestUnderTest
from drvm.drill.checks.console import ConsoleCheck
from drvm.drill.checks.malware import NOT_MOUNTED, MalwareCheck
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.ways import way_into, way_problems
from tests.fakes.drill_host import DrilledDomain, DrillHost

SCAN = MalwareCheck(("/bin/sh", "{disks}"))


def problems(*checks: Check, has_card: bool = True, away: bool = False) -> list[str]:
    host: Any = DrillHost(uri="qemu+ssh://kvm2/system")
    return [*way_problems(host, checks, has_card=has_card, away=away)]


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host has all that is needed."""
    monkeypatch.setattr(ways, "wire_problems", lambda: iter(()))
    monkeypatch.setattr(malware, "require", lambda _: None)
    monkeypatch.setattr(malware.os, "geteuid", lambda: 0)
    monkeypatch.setattr(malware, "_FUSE", Path("/dev/null"))


def test_a_host_that_has_all_is_no_problem() -> None:
    assert problems(AgentCheck(), TcpCheck(22), ConsoleCheck("x"), SCAN) == []
    assert problems(AgentCheck(), has_card=False, away=True) == []


def test_a_guest_on_another_host_is_not_reached_from_here() -> None:
    (network,) = problems(TcpCheck(22), ScriptCheck(("/bin/sh",)), away=True)
    assert "qemu+ssh://kvm2/system is another machine" in network
    assert "leave out tcp 22, script /bin/sh" in network
    (console,) = problems(ConsoleCheck("x"), away=True)
    assert "leave out the check of the console" in console


def test_a_machine_without_a_card_has_no_network_to_be_reached_by() -> None:
    (line,) = problems(TcpCheck(22), has_card=False)
    assert "no network card" in line


def test_what_this_host_lacks_is_said_for_the_checks_that_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: object) -> None:
        raise RestoreError("libguestfs is not installed", hint="apt install libguestfs0")

    monkeypatch.setattr(ways, "wire_problems", lambda: iter(["needs root"]))
    monkeypatch.setattr(malware, "require", missing)
    assert problems(TcpCheck(22)) == ["needs root"]
    assert problems(AgentCheck(), ConsoleCheck("x")) == []
    (line,) = problems(SCAN)
    assert "apt install libguestfs0" in line


def test_a_program_that_is_not_there_is_found_before_the_drill() -> None:
    for check in (ScriptCheck(("/no/such/check",)), MalwareCheck(("no-such-scanner", "{disks}"))):
        (line,) = problems(check)
        assert check.run[0] in line


def test_the_network_is_joined_only_where_a_check_needs_it() -> None:
    host: Any = DrillHost()
    with way_into(host, "drvm-drill-x", "0" * 16, (), (AgentCheck(),)) as wire:
        assert wire is None
    with way_into(host, None, "0" * 16, (), (TcpCheck(22),)) as wire:
        assert wire is None


class Scanner:
    """Implements ``Processes.run``: ends like this, and keeps what it was asked for."""

    def __init__(self, end: Output | DrvmError) -> None:
        self.end = end
        self.argv: Sequence[str] = ()

    def run(self, argv: Sequence[str], *, beat: Callable[[], None], **_: object) -> Output:
        self.argv = argv
        beat()
        if isinstance(self.end, DrvmError):
            raise self.end
        return self.end


def scan(
    end: Output | DrvmError, tmp_path: Path, beat: Callable[[], None] = lambda: None
) -> tuple[Any, Scanner]:
    scanner: Any = Scanner(end)
    domain: Any = DrilledDomain(DrillHost(), "m")
    exports = Exports(tmp_path / "socket", ("vda", "vdb"))
    guest = GuestUnderTest(
        domain, directory=tmp_path, disks=lambda: nullcontext(exports), beat=beat
    )
    return MalwareCheck(("scan", "-r", "{disks}"), processes=scanner).attempt(guest), scanner


def test_a_scanner_that_finds_nothing_passes_and_proves_no_boot(tmp_path: Path) -> None:
    found, scanner = scan(Output(b"0 infected", b"vdb1 was left out: crypto_LUKS"), tmp_path)
    assert (found.passed, found.answered) == (True, False)
    assert "crypto_LUKS" in found.detail
    assert [*scanner.argv[-6:]] == ["2", "vda", "vdb", "scan", "-r", "{disks}"]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (ProcessFailed("x", code=1, stdout=b"vda1/bad: EICAR"), "vda1/bad: EICAR"),
        (ProcessFailed("x", code=NOT_MOUNTED, stderr=b"no kernel"), "could not be mounted"),
        (ProcessFailed("setpriv did not end within 3600 s"), "scan did not end within"),
        (ProcessFailed("setpriv wrote more than 4194304 bytes"), "no more than what it finds"),
    ],
)
def test_whatever_else_a_scan_ends_with_fails_once(
    end: ProcessFailed, words: str, tmp_path: Path
) -> None:
    found, _ = scan(end, tmp_path)
    assert (found.passed, found.final) == (False, True)
    assert words in found.detail


def test_without_the_points_disks_there_is_no_scan() -> None:
    domain: Any = DrilledDomain(DrillHost(), "m")
    found = SCAN.attempt(GuestUnderTest(domain))
    assert (found.passed, found.final) == (False, True)


def test_a_signal_during_a_scan_ends_the_command_and_says_nothing_of_the_disks(
    tmp_path: Path,
) -> None:
    with pytest.raises(Interrupted):
        scan(Interrupted("ended by SIGTERM"), tmp_path)


def test_a_daemon_that_stops_waits_for_no_scan(tmp_path: Path) -> None:
    def stopping() -> None:
        raise Interrupted("the daemon is stopping")

    with pytest.raises(Interrupted):
        scan(Output(b"0 infected", b""), tmp_path, stopping)
