"""What systemd hears, through a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.daemon.systemd import Systemd
from tests.fakes.clock import FakeClock


@pytest.fixture(params=["file", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        name = f"@drvm-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
        link.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        link.settimeout(5.0)
        yield link, name


def test_ready_reloading_and_stopping_are_heard(heard: tuple[socket.socket, str]) -> None:
    link, name = heard
    clock = FakeClock()
    clock.passed_s = 12.5
    systemd = Systemd({"NOTIFY_SOCKET": name}, clock)
    systemd.ready()
    systemd.reloading()
    systemd.stopping()
    assert link.recv(1000) == b"READY=1"
    assert link.recv(1000) == b"RELOADING=1\nMONOTONIC_USEC=12500000"
    assert link.recv(1000) == b"STOPPING=1"


def test_the_watchdog_hears_of_us_often_enough_and_not_all_the_time(
    heard: tuple[socket.socket, str],
) -> None:
    link, name = heard
    clock = FakeClock()
    systemd = Systemd({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"}, clock)
    assert systemd.watchdog_s == 30.0
    for _ in range(60):
        systemd.alive()
        clock.sleep(1.0)
    link.setblocking(False)
    count = 0
    with pytest.raises(BlockingIOError):
        while link.recv(1000) == b"WATCHDOG=1":
            count += 1
    assert 3 <= count <= 5


def test_a_status_is_one_line_and_sent_when_it_changes(heard: tuple[socket.socket, str]) -> None:
    link, name = heard
    systemd = Systemd({"NOTIFY_SOCKET": name}, FakeClock())
    systemd.status("one\nREADY=1")
    systemd.status("one\nREADY=1")
    systemd.status("two")
    assert b"\n" not in link.recv(1000) and link.recv(1000) == b"STATUS=two"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/no/such/socket"},
        {"NOTIFY_SOCKET": "/" + "x" * 500},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
    ],
)
def test_where_nobody_listens_nothing_happens(environ: dict[str, str]) -> None:
    systemd = Systemd({**environ, "WATCHDOG_USEC": "1000000"}, FakeClock())
    systemd.ready()
    systemd.alive()
    systemd.status("x")


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "many"},
        {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_that_is_none_or_anothers_is_not_served(environ: dict[str, str]) -> None:
    assert Systemd(environ, FakeClock()).watchdog_s is None
