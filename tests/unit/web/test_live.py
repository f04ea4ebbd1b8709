from __future__ import annotations

import asyncio

from drvm.web.live import MAX_STREAMS, MAX_STREAMS_OF_ONE, Live, Look, event
from tests.fakes.clock import FakeClock


def live() -> Live:
    return Live(lambda _vm: Look("<p>x</p>", "1"), FakeClock().monotonic_s)


def test_streams_are_bounded_for_each_session_and_for_all() -> None:
    streams = live()
    assert [streams.enter("a") for _ in range(MAX_STREAMS_OF_ONE + 1)][-2:] == [True, False]
    for n in range(MAX_STREAMS - MAX_STREAMS_OF_ONE):
        assert streams.enter(f"s{n}")
    assert not streams.enter("another")
    streams.leave("a")
    assert streams.enter("another")


def test_no_stream_begins_after_the_end() -> None:
    streams = live()
    streams.end()
    assert not streams.enter("a")


def test_a_stream_says_what_runs_and_ends_with_its_session() -> None:
    valid = [True, True, False]
    streams = Live(lambda vm: Look(f"<p>{vm}</p>\n<p>2</p>", "7"), FakeClock().monotonic_s)

    async def read() -> list[str]:
        return [part async for part in streams.stream("vm-1", lambda: valid.pop(0))]

    parts = in_a_thread(read())
    assert parts == [
        "retry: 3000\n\n",
        "event: running\ndata: <p>vm-1</p>\ndata: <p>2</p>\n\nevent: page\ndata: 7\n\n",
    ]


def test_streams_share_one_look() -> None:
    asked: list[str] = []

    def look(vm: str) -> Look:
        asked.append(vm)
        return Look("x", "1")

    streams = Live(look, FakeClock().monotonic_s)
    for vm in ("", "a", "", "a", ""):
        streams._shared(vm)
    assert asked == ["", "a"]


def test_no_text_can_begin_another_event() -> None:
    said = event("running", "a\r\nevent: page\n\ndata: b\rid: 3\u2028x\x0bid: 4")
    assert all(line.startswith("data: ") for line in said.split("\n")[1:-2])
    assert "\r" not in said


def in_a_thread(work: object) -> list[str]:
    """The browser of the tests has an event loop of its own in this thread."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()  # type: ignore[arg-type]
