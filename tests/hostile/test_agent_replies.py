"""What an agent in the guest may reply to each question: taken where it has the form, within
bounds, and an error of the agent, or nothing, where it has not."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from drvm.core.errors import AgentError
from drvm.host import agent
from drvm.snapshot.guestview import ask
from drvm.snapshot.mountpoints import mounted
from tests.fakes.clock import FakeClock

MIB = 1 << 20
ESCAPES = "\x1b[2J\u202e\n\x00"
DEEP = "[" * 100_000 + "]" * 100_000
ENDED = {"pid": 1, "exited": True, "exitcode": 0}
MANY = [{"mountpoint": f"/{n}", "type": "ext4", "name": f"c{n}"} for n in range(50_000)]


def returning(value: Any) -> str:
    return json.dumps({"return": value})


REPLIES: dict[str, str | None] = {
    "nothing": "",
    "no text": None,
    "no JSON": "\x00\xff",
    "half of it": '{"return": {"pid": 1',
    "two of them": '{"return": {}}{"return": {}}',
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "no return": '{"error": {"class": "x", "desc": "\\u001b[2J"}}',
    "null returned": returning(None),
    "true returned": returning(True),
    "a text returned": returning(ESCAPES),
    "a long text returned": returning("x" * 3 * MIB),
    "more than is read": returning("x" * 5 * MIB),
    "deep lists": DEEP,
    "deep lists returned": '{"return": ' + DEEP + "}",
    "deep objects returned": '{"return": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}",
    "a number of 4000 digits": '{"return": {"pid": 1' + "0" * 4000 + "}}",
    "a number of 5000 digits": '{"return": {"pid": 1' + "0" * 5000 + "}}",
    "NaN": '{"return": {"pid": NaN, "exited": NaN}}',
    "infinite": '{"return": {"pid": 1e999, "exited": true, "exitcode": -1e999}}',
    "return twice": '{"return": 1, "return": {"pid": "x"}}',
    "a lone surrogate": '{"return": {"host-name": "\\ud800", "pretty-name": "\\udfff"}}',
    "a pid that is a text": returning({"pid": "1; reboot"}),
    "a pid that is true": returning({"pid": True}),
    "a pid below zero": returning({"pid": -1}),
    "an end that is a number": returning({"pid": 1, "exited": 1}),
    "an end without a code": returning({"pid": 1, "exited": True}),
    "a code that is a text": returning({"pid": 1, "exited": True, "exitcode": "0"}),
    "a signal that is a list": returning({"pid": 1, "exited": True, "signal": [9]}),
    "a signal of all bits": returning({"pid": 1, "exited": True, "signal": 1 << 70}),
    "output that is no base64": returning({**ENDED, "out-data": "%"}),
    "output of no text": returning({**ENDED, "out-data": [1]}),
    "output that is no ASCII": returning({**ENDED, "err-data": "ÿ" * 8}),
    "three megabytes of output": returning(
        {**ENDED, "out-data": base64.b64encode(bytes(2 * MIB)).decode()}
    ),
    "never an end": returning({"pid": 1, "exited": False}),
    "names with control characters": returning(
        {"pretty-name": ESCAPES, "id": ESCAPES, "host-name": ESCAPES, "machine": ESCAPES}
    ),
    "long names": returning({"pretty-name": "x" * MIB, "host-name": "x" * MIB}),
    "names that are lists": returning({"pretty-name": [], "id": {}, "host-name": 7}),
    "fifty thousand file systems": returning(MANY),
    "a thousand file systems": returning(MANY[:1000]),
    "file systems that are texts": returning(["/", "/srv"]),
    "file systems without a place": returning([{"mountpoint": ""}, {"type": "ext4"}]),
    "file systems with control characters": returning([{"mountpoint": ESCAPES, "type": ESCAPES}]),
    "file systems of long places": returning([{"mountpoint": "/" + "x" * MIB}]),
    "file systems of impossible sizes": returning(
        [{"mountpoint": "/", "used-bytes": -1, "total-bytes": 10**300}]
    ),
    "file systems with sizes that are true": returning(
        [{"mountpoint": "/", "used-bytes": True, "total-bytes": 1.5}]
    ),
    "cards without addresses": returning([{"name": "eth0", "ip-addresses": None}]),
    "cards with a million addresses": returning(
        [{"name": "eth0", "ip-addresses": [{"ip-address": "192.0.2.1"}] * 50_000}]
    ),
    "cards with addresses that are none": returning(
        [{"name": ESCAPES, "ip-addresses": [{"ip-address": "192.0.2.1/../x", "prefix": 10**30}]}]
    ),
    "cards with addresses that are numbers": returning(
        [{"name": "eth0", "ip-addresses": [{"ip-address": 7, "prefix": "24"}, 7, None]}]
    ),
    "a zone as an address": returning(
        [{"name": "e", "ip-addresses": [{"ip-address": "fe80::1%\x1b[2J", "prefix": 64}]}]
    ),
}


class Agent:
    """Replies to whatever it is asked with one text."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def agent_command(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        return agent.reply(self.text)


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_taken_within_bounds_or_refused(name: str) -> None:
    guest, clock = Agent(REPLIES[name]), FakeClock()
    tracemalloc.start()
    try:
        told = ask(guest, clock)  # type: ignore[arg-type]
        assert all(text.isprintable() and len(text) <= 2000 for text in told.values())
        try:
            places = mounted(guest, 5)  # type: ignore[arg-type]
            assert len(places) <= 1000 and all(len(place) <= 1024 for place in places)
        except AgentError as error:
            assert error.message.isprintable() and len(error.message) < 200
        try:
            result = agent.run(guest.agent_command, ["true"], b"", 3.0, clock)
            assert max(len(result.stdout), len(result.stderr)) <= 65536
            assert type(result.exit_code) is int
        except AgentError as error:
            assert error.message.isprintable() and len(error.message) < 200
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()


def test_the_replies_are_not_few() -> None:
    assert len(REPLIES) >= 50
