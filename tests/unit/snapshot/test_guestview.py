"""What a guest says of itself is kept only where it has the expected form, and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError
from drvm.snapshot.guestview import ask
from tests.fakes.clock import FakeClock

KEYS = {"os", "os_id", "os_version", "machine", "hostname", "file_systems", "addresses", "cards"}
HONEST = {
    "guest-get-osinfo": {"pretty-name": "Debian 12", "id": "debian", "version-id": "12"},
    "guest-get-host-name": {"host-name": "web1"},
    "guest-get-fsinfo": [
        {"mountpoint": "/", "type": "ext4", "used-bytes": 1 << 20, "total-bytes": 1 << 30},
        {"mountpoint": "/old", "type": "vfat"},
    ],
    "guest-network-get-interfaces": [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
        {
            "name": "eth0",
            "hardware-address": "52:54:00:AA:bb:cc",
            "ip-addresses": [
                {"ip-address": "192.0.2.7", "prefix": 24},
                {"ip-address": "fe80::1", "prefix": 64},
                {"ip-address": "2001:db8::7", "prefix": 64},
            ],
        },
        {"name": "eth1"},
    ],
}


class Guest:
    """An agent that gives these answers, or fails where there is none, each after ``takes_s``."""

    def __init__(self, answers: Mapping[str, Any], clock: FakeClock, takes_s: float = 0) -> None:
        self.answers, self.clock, self.takes_s, self.asked = answers, clock, takes_s, 0

    def agent_command(self, command: str, *, timeout_s: int) -> Any:
        self.asked += 1
        self.clock.sleep(min(self.takes_s, timeout_s))
        if command not in self.answers or self.takes_s > timeout_s:
            raise AgentError("no answer")
        return self.answers[command]


def told(answers: Mapping[str, Any], takes_s: float = 0) -> dict[str, str]:
    clock = FakeClock()
    return ask(Guest(answers, clock, takes_s), clock)  # type: ignore[arg-type]


def test_an_honest_guest_is_described() -> None:
    assert told(HONEST) == {
        "os": "Debian 12",
        "os_id": "debian",
        "os_version": "12",
        "hostname": "web1",
        "file_systems": "/ (ext4, 1.0 MiB of 1.0 GiB); /old (vfat)",
        "addresses": "eth0 192.0.2.7/24; eth0 2001:db8::7/64",
        "cards": "52:54:00:aa:bb:cc 192.0.2.7/24; 52:54:00:aa:bb:cc 2001:db8::7/64",
    }


@pytest.mark.parametrize("missing", HONEST)
def test_a_question_that_is_not_answered_costs_only_its_answer(missing: str) -> None:
    rest = {name: answer for name, answer in HONEST.items() if name != missing}
    assert told(rest).items() < told(HONEST).items()


def test_a_slow_guest_is_not_waited_for_for_long() -> None:
    clock = FakeClock()
    guest = Guest(HONEST, clock, takes_s=60)
    assert ask(guest, clock) == {}  # type: ignore[arg-type]
    assert clock.monotonic_s() < 10


def test_a_flood_is_cut() -> None:
    flood = [{"mountpoint": f"/{n}" + "x" * 10_000, "type": "e" * 10_000} for n in range(10_000)]
    found = told({**HONEST, "guest-get-fsinfo": flood})
    assert len(found["file_systems"]) <= 2000
    small = [{"mountpoint": f"/{n}"} for n in range(100)]
    found = told({**HONEST, "guest-get-fsinfo": small})
    assert found["file_systems"].endswith("/31; and 68 more")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "mountpoint",
                    "type",
                    "used-bytes",
                    "total-bytes",
                    "name",
                    "ip-addresses",
                    "ip-address",
                    "prefix",
                    "pretty-name",
                    "id",
                    "host-name",
                    "x",
                ]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


def test_addresses_that_are_none_are_left_out() -> None:
    cards = [{"name": "eth0", "ip-addresses": [7, None, "x", {"ip-address": "192.0.2.7"}]}]
    assert told({"guest-network-get-interfaces": cards}) == {"addresses": "eth0 192.0.2.7/32"}


@given(st.fixed_dictionaries(dict.fromkeys(HONEST, json_values)))
def test_any_answer_leaves_only_short_printable_texts_under_known_names(
    answers: dict[str, Any],
) -> None:
    found = told(answers)
    assert found.keys() <= KEYS
    assert all(text and text.isprintable() and len(text) <= 2000 for text in found.values())
