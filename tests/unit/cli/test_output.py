import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.cli.output import Column, Flags, Output
from drvm.cli.progress import show_progress
from tests.fakes.clock import FakeClock

COLUMNS = (Column("name"), Column("size", right=True))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def output(stream: io.StringIO | None = None, *, json: bool = False) -> tuple[Output, io.StringIO]:
    stream = stream or io.StringIO()
    return Output(stream, Flags(json=json), colour=False), stream


def test_a_table_in_a_pipe_is_plain_and_aligned() -> None:
    out, stream = output()
    out.table(COLUMNS, [["vda", "10.0 GiB"], ["vdb-long", "1 B"]])
    assert stream.getvalue() == ("NAME          SIZE\nvda       10.0 GiB\nvdb-long       1 B\n")


def test_a_table_on_a_terminal_takes_brackets_as_they_are() -> None:
    out, stream = output(Terminal())
    out.table(COLUMNS, [["[bold]web[/bold]", "1 B"]])
    assert "[bold]web[/bold]" in stream.getvalue()


def test_a_narrow_terminal_wraps_long_texts_and_leaves_ids_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    out, stream = output(Terminal())
    ids = ["9f86d081884c7d65" * 2, "web1"]
    columns = (Column("point"), Column("vm"), Column("found", wraps=True))
    out.table(columns, [[*ids, "a few words that are too long for the line"]])
    lines = stream.getvalue().splitlines()
    assert any(all(text in line for text in ids) for line in lines)
    assert len(lines) == 3 and "for the line" in lines[2]


def test_no_word_is_lost_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out, stream = output(Terminal())
    columns = (Column("last good"), Column("would lose"), Column("engine", wraps=True))
    cells = ["2026-11-23 04:00", "3 h 20 min", "pull: its external snapshot must stay as it is"]
    out.table(columns, [cells])
    told = stream.getvalue()
    assert all(word in told.split() for cell in cells for word in cell.split()), told
    assert all(len(line) <= 54 for line in told.splitlines()[1:])


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_control_characters_are_written_out(stream: type[io.StringIO]) -> None:
    out, written = output(stream())
    out.table(COLUMNS, [["a\x1b[31mb\n", "\r1"]])
    out.line("\x1b]0;title\x07")
    out.block("one\ntwo\x9b2J")
    # What rich itself writes is decoration of a terminal; the hostile sequences are not in it.
    assert not any(bad in written.getvalue() for bad in ("\x1b[31mb", "\x1b]0;", "\x9b", "\r"))


def test_with_json_people_read_nothing() -> None:
    out, stream = output(json=True)
    out.line("x")
    out.block("x")
    out.table(COLUMNS, [])
    assert stream.getvalue() == ""


def test_a_document_is_sorted_ascii_json() -> None:
    out, stream = output(json=True)
    moment = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
    out.document({"b": moment, "a": {"path": Path("/x"), "name": "ü\x1b\u202e"}})
    text = stream.getvalue()
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text) == {
        "a": {"name": "ü\x1b\u202e", "path": "/x"},
        "b": "2026-11-23T00:00:00Z",
    }
    assert text.index('"a"') < text.index('"b"')


def test_a_second_document_is_a_mistake_of_ours() -> None:
    out, _ = output(json=True)
    out.document({})
    with pytest.raises(AssertionError):
        out.document({})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_document_reads_back(value: Any) -> None:
    out, stream = output(json=True)
    out.document({"value": value})
    assert json.loads(stream.getvalue()) == {"value": value}


def test_a_bar_on_a_terminal_shows_stages_and_goes_away() -> None:
    stream = Terminal()
    with show_progress(stream, Flags(), colour=False) as progress:
        progress.stage("reading [vda]\x1b[2J", 100)
        progress.advance(60)
        progress.stage("writing the point")
    written = stream.getvalue()
    assert "writing the point" in written and "\x1b[2J" not in written


def test_a_stage_without_a_total_shows_no_bytes_of_the_one_before() -> None:
    stream = Terminal()
    with show_progress(stream, Flags(), colour=False) as progress:
        progress.stage("restoring vda", 4 << 20)
        progress.advance(1 << 20)
        progress.stage("checking: agent")
    last = stream.getvalue().rpartition("checking: agent")[2]
    assert "restoring vda" in stream.getvalue() and "MiB" not in last


def test_a_log_is_told_every_half_minute_how_far_a_long_stage_is() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with show_progress(stream, Flags(), colour=False, clock=clock) as progress:
        progress.stage("reading vda", 100 << 30)
        for _ in range(45):
            clock.sleep(2)
            progress.advance(1 << 30)
        progress.stage("committing web1")
        progress.advance(1)
    assert stream.getvalue().splitlines() == [
        "reading vda",
        "reading vda: 15 % of 100.0 GiB, 512.0 MiB/s, 2 min 50 s left",
        "reading vda: 30 % of 100.0 GiB, 512.0 MiB/s, 2 min 20 s left",
        "reading vda: 45 % of 100.0 GiB, 512.0 MiB/s, 1 min 50 s left",
        "committing web1",
    ]


@pytest.mark.parametrize("flags", [Flags(quiet=True), Flags(json=True)])
def test_no_progress_is_shown_where_nobody_looks(flags: Flags) -> None:
    stream = Terminal()
    with show_progress(stream, flags, colour=True) as progress:
        progress.stage("x", 1)
        progress.advance(1)
    assert stream.getvalue() == ""
