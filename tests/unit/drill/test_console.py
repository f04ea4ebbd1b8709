"""The console's text is what a person would read, and never more than its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import GuestUnderTest
from drvm.drill.checks.console import TAIL_BYTES, ConsoleCheck, plain, tail
from drvm.drill.console import with_console
from drvm.restore.machine.definition import Definition
from tests.fakes.drill_host import DrilledDomain, DrillHost

LOGIN = ConsoleCheck("^web1 login: $")


def guest(console: Path | None) -> GuestUnderTest:
    host = DrillHost(machines={"m": "<domain/>"})
    return GuestUnderTest(DrilledDomain(host, "m"), console=console)  # type: ignore[arg-type]


def definition(devices: str) -> Definition:
    return Definition(f"<domain><devices>{devices}</devices></domain>", (), ("before",), ())


def test_a_line_on_the_console_is_found_behind_colours_and_carriage_returns(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"\x1b[2J\x1b[1;1H\x1b[32m[ OK ]\x1b[0m\r\n\x1b]0;title\x07web1 login: \r\n")
    found = LOGIN.attempt(guest(log))
    assert (found.passed, found.answered, found.detail) == (True, True, "web1 login: ")


def test_a_console_that_says_other_things_is_no_answer_yet(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"SeaBIOS\r\n")
    found = LOGIN.attempt(guest(log))
    assert (found.passed, found.answered, found.final) == (False, False, False)
    assert "SeaBIOS" in found.detail


def test_a_console_that_nothing_was_written_to_says_so(tmp_path: Path) -> None:
    found = LOGIN.attempt(guest(tmp_path / "none"))
    assert "nothing was written" in found.detail


def test_only_the_end_of_an_endless_console_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with log.open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nweb1 login: ")
    assert len(tail(log)) == TAIL_BYTES
    assert LOGIN.attempt(guest(log)).passed


def test_what_was_written_before_the_log_was_put_aside_is_found(tmp_path: Path) -> None:
    (tmp_path / "console.log.0").write_bytes(b"web1 login: \n")
    (tmp_path / "console.log").write_bytes(b"later\n")
    assert LOGIN.attempt(guest(tmp_path / "console.log")).passed


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_log_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "console.log"
    if kind == "pipe":
        os.mkfifo(log)
    else:
        log.symlink_to(tmp_path / "other")
    assert not LOGIN.attempt(guest(log)).passed


@given(st.binary(max_size=400))
def test_whatever_is_written_the_text_has_no_control_characters(data: bytes) -> None:
    text = plain(data)
    assert all(c in "\n\t" or c >= " " for c in text)
    assert "\x7f" not in text
    assert plain(text.encode()) == text


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=50))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert plain(text.encode()) == text


def test_the_first_serial_port_is_logged_and_the_others_are_not(tmp_path: Path) -> None:
    ports = "<serial type='pty'><target port='0'/></serial><serial type='pty'/>"
    made, log = with_console(definition(ports), tmp_path, (AgentCheck(), LOGIN))
    first, second = fromstring(made.xml).findall("devices/serial")
    assert first.find("log").get("file") == str(log) == str(tmp_path / "console.log")
    assert second.find("log") is None
    assert made.changed == ("before",)


def test_a_machine_without_a_serial_port_gets_one_and_it_is_said(tmp_path: Path) -> None:
    made, log = with_console(definition("<disk/>"), tmp_path, (LOGIN,))
    (port,) = fromstring(made.xml).findall("devices/serial")
    assert port.find("log").get("file") == str(log)
    assert "a port was added" in made.changed[1]


def test_without_such_a_check_the_machine_is_left_as_it_is(tmp_path: Path) -> None:
    given_one = definition("<disk/>")
    assert with_console(given_one, tmp_path, (AgentCheck(),)) == (given_one, None)
