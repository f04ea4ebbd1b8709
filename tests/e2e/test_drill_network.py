"""A drill's network is reached from a namespace that nobody else is in, and that leaves nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.detached import running
from drvm.core.errors import HostError, Interrupted
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.drill.checks.base import Card, HttpAsked
from drvm.drill.wire.line import Line, joined, wire_problems
from tests.killing import killed_at
from tests.net_guest import ADDRESS, ADDRESS_V6, LINK_LOCAL, MAC, NetGuest, net_guest

pytestmark = pytest.mark.guest

GUEST = ip_interface(ADDRESS)
CLOCK = SystemClock()
DRILL = "0123456789abcdef"
CABLE = Path("/sys/class/net/drv456789abcdef")


@pytest.fixture(scope="module")
def guest(processes: Processes) -> Iterator[NetGuest]:
    with net_guest(processes, f"{os.getpid() % 100000}") as made:
        yield made


@pytest.fixture(scope="module")
def line(guest: NetGuest, processes: Processes) -> Iterator[Line]:
    with joined(processes, guest.bridge, DRILL, [Card(MAC), Card("52:54:00:00:00:08")]) as made:
        yield made


def links(processes: Processes) -> str:
    """Links, routes and addresses of the host."""
    found = [
        processes.run(["ip", *words], timeout_s=30).stdout.decode()
        for words in (("-br", "link"), ("-4", "addr"), ("route",), ("-6", "route"))
    ]
    return "\n".join(found)


def serves(address: str) -> bool:
    """Whether a dnsmasq runs that gives this address."""
    argument = f"--dhcp-host={MAC},{address}".encode()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument in place.read_bytes().split(b"\0"):
                return True
    return False


def page(**changes: object) -> HttpAsked:
    fields: dict[str, object] = {
        "port": 80,
        "path": "/",
        "tls": False,
        "host": None,
        "ca_file": None,
        "expect_status": (200,),
        "expect_body": None,
    }
    return HttpAsked(**(fields | changes))  # type: ignore[arg-type]


def test_this_host_can_join_a_drills_network() -> None:
    assert [*wire_problems()] == []


@pytest.mark.parametrize(
    "to", [ADDRESS, f"{ADDRESS}/24", ADDRESS_V6, f"{ADDRESS_V6}/64", LINK_LOCAL]
)
def test_a_guest_is_reached_at_its_own_address(line: Line, to: str) -> None:
    assert line.tcp(ip_interface(to), 22, "^SSH-2", 20).passed


def test_it_is_asked_by_a_neighbour_of_its_own_subnet(line: Line) -> None:
    found = line.http(GUEST, page(expect_body="^hello "), 20)
    assert found.passed
    (said,) = [text for text in found.detail.split("\n") if text.startswith("hello")]
    asker = ip_address(said.removeprefix("hello ").removeprefix("::ffff:"))
    assert isinstance(asker, IPv4Address)
    assert asker in ip_interface(f"{ADDRESS}/24").network
    assert str(asker) != ADDRESS


def test_a_port_that_refuses_is_an_answer_and_an_address_that_nobody_has_is_none(
    line: Line,
) -> None:
    refused = line.tcp(GUEST, 99, None, 10)
    assert (refused.passed, refused.answered) == (False, True)
    nobody = line.tcp(ip_interface("192.0.2.99"), 22, None, 10)
    assert (nobody.passed, nobody.answered) == (False, False)


def test_a_guest_that_says_something_on_the_wire_is_heard(guest: NetGuest, line: Line) -> None:
    guest.wake()
    assert line.heard([MAC])[0] == GUEST
    assert line.heard(["52:54:00:00:00:08"]) == ()


def test_a_guest_that_only_listens_is_asked_whether_it_has_the_address_it_had(
    guest: NetGuest, processes: Processes
) -> None:
    card = Card(MAC, (ip_interface(f"{ADDRESS}/24"),))
    with joined(processes, guest.bridge, "cccc456789abcdee", [card]) as fresh:
        assert fresh.heard([MAC])[0] == GUEST


@pytest.mark.parametrize(("port", "pattern"), [(23, "^SSH"), (24, "^SSH"), (23, "(x+x+)+y")])
def test_a_service_without_an_end_costs_the_time_of_one_try(
    line: Line, port: int, pattern: str
) -> None:
    begun_s = CLOCK.monotonic_s()
    found = line.tcp(GUEST, port, pattern, 1.5)
    assert (found.passed, found.answered) == (False, True)
    assert CLOCK.monotonic_s() - begun_s < 15
    assert line.tcp(GUEST, 22, "^SSH", 20).passed


@pytest.mark.parametrize("port", [22, 23, 24])
def test_what_is_no_web_server_is_told_from_one(line: Line, port: int) -> None:
    found = line.http(GUEST, page(port=port), 1.5)
    assert (found.passed, found.answered) == (False, True)


def on() -> None:
    """Nobody wants an end."""


def test_a_script_sees_this_network_and_no_other(line: Line, tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text(
        "#!/bin/sh\nset -e\nip -br link | cut -d' ' -f1 | tr '\\n' ' '\n"
        'ps -o comm= -p $$\necho "$GREETING"\n'
    )
    script.chmod(0o755)
    found = line.run([str(script)], {"GREETING": "hello you"}, GUEST, 20, on)
    assert found.passed, found
    assert "hello you" in found.detail
    assert "drvm0" in found.detail
    assert "dtb" not in found.detail
    failed = line.run(["sh", "-c", "echo no such mail >&2; exit 3"], {}, GUEST, 20, on)
    assert (failed.passed, failed.answered) == (False, False)
    assert "exit code 3" in failed.detail
    assert "no such mail" in failed.detail


def test_a_script_that_does_not_end_is_ended_with_all_it_started(line: Line) -> None:
    mark = f"{os.getpid()}123"
    found = line.run(["sh", "-c", f"sleep {mark} & sleep {mark}"], {}, GUEST, 0.5, on)
    assert (found.passed, "did not end" in found.detail) == (False, True)
    deadline_s = CLOCK.monotonic_s() + 10
    while running(mark):
        assert CLOCK.monotonic_s() < deadline_s, "it outlived its script"
        CLOCK.sleep(0.05)


def test_an_end_that_is_wanted_ends_a_script(line: Line) -> None:
    mark, beats = f"{os.getpid()}124", iter(range(3))

    def stopping() -> None:
        if next(beats, None) is None:
            raise Interrupted("the daemon is stopping")

    with pytest.raises(Interrupted):
        line.run(["sleep", mark], {}, GUEST, 60, stopping)
    assert not running(mark)


def test_a_script_that_never_stops_talking_is_ended(line: Line) -> None:
    found = line.run(["yes"], {}, GUEST, 20, on)
    assert (found.passed, "wrote more than" in found.detail) == (False, True)


def test_the_host_gets_neither_address_nor_route(
    guest: NetGuest, processes: Processes, line: Line
) -> None:
    shown = links(processes)
    assert "192.0.2." not in shown
    assert "172.31.231." not in shown
    assert "2001:db8:" not in shown
    assert (
        processes.run(
            ["ip", "-br", "addr", "show", "dev", CABLE.name], timeout_s=30
        ).stdout.split()[2:]
        == []
    )


def test_a_bridge_that_is_not_there_is_an_error_and_leaves_nothing(processes: Processes) -> None:
    before = links(processes)
    with (
        pytest.raises(HostError, match="can't be joined"),
        joined(processes, "dtnone", "f" * 16, []),
    ):
        pass
    assert links(processes) == before


@pytest.mark.parametrize("step", ["network-joined", "network-served"])
def test_nothing_of_it_outlives_a_killed_drvm(
    guest: NetGuest, processes: Processes, step: str
) -> None:
    drill = "aaaa" + DRILL[4:-4] + step[-4:].encode().hex()[-4:]
    cable = Path("/sys/class/net") / f"drv{drill[-12:]}"

    def join(trace: Trace) -> None:
        card = Card(MAC, (ip_interface("10.9.9.9/24"),))
        with joined(processes, guest.bridge, drill, [card], trace):
            pass

    killed_at(step, join)
    deadline_s = CLOCK.monotonic_s() + 20
    while cable.exists() or serves("10.9.9.9"):
        assert CLOCK.monotonic_s() < deadline_s, "something outlived its drill"
        CLOCK.sleep(0.05)


def test_it_is_gone_when_it_is_left(guest: NetGuest, processes: Processes) -> None:
    drill = "bbbb" + DRILL[4:-4] + "beef"
    card = Card(MAC, (ip_interface("10.9.9.9/24"),))
    with joined(processes, guest.bridge, drill, [card], no_trace) as made:
        assert made.tcp(GUEST, 22, None, 20).passed
        assert serves("10.9.9.9")
    assert not serves("10.9.9.9")
    assert not (Path("/sys/class/net") / f"drv{drill[-12:]}").exists()
