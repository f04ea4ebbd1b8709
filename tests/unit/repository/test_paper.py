"""The paper form: what was printed comes back, and what was mistyped is found line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import UsageError
from drvm.repository import paper
from drvm.repository.crypto import MasterKeys
from drvm.repository.paper import Paper

RID = "00112233445566778899aabbccddeeff"
PAPER = Paper(RID, MasterKeys(bytes(range(32)), bytes(range(32, 64))))
PAGE = paper.page(PAPER, "s3://backups/drvm", "2026-01-31 23:59:59 UTC")
LINES = paper.lines(PAPER)


def same(found: Paper) -> bool:
    return found == PAPER


def problems(*lines: str) -> str:
    with pytest.raises(UsageError) as caught:
        paper.read(lines)
    return caught.value.message


def changed(number: int, place: int, to: str) -> list[str]:
    line = LINES[number - 1]
    return [*LINES[: number - 1], line[:place] + to + line[place + 1 :], *LINES[number:]]


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=64, max_size=64))
def test_any_keys_come_back(rid: bytes, keys: bytes) -> None:
    held = Paper(rid.hex(), MasterKeys(keys[:32], keys[32:]))
    assert paper.read(paper.page(held, "s3://x", "now").splitlines()) == held


def test_the_page_fits_on_one() -> None:
    rows = PAGE.splitlines()
    assert len(rows) < 50 and max(map(len, rows)) <= 76
    assert RID in PAGE and "s3://backups/drvm" in PAGE


def test_a_location_can_do_nothing_to_a_terminal() -> None:
    assert "\x1b" not in paper.page(PAPER, "file:///\x1b[2J", "now")


def test_lines_may_be_typed_in_any_order_and_in_peoples_ways() -> None:
    typed = [line.upper().replace(" ", "") for line in reversed(LINES)]
    assert same(paper.read(typed))
    typed = [line.replace("0", "O").replace("1", "l").replace(f"{n}:", f" {n}) ")
             for n, line in enumerate(LINES, 1)]  # fmt: skip
    typed = [f"{n}) {text[4:]}" for n, text in enumerate(typed, 1)]
    assert same(paper.read(["some words", "", *typed]))


@given(st.data())
def test_one_wrong_digit_is_found_in_its_line(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 6))
    line = LINES[number - 1]
    places = [at for at, char in enumerate(line) if at > 1 and char in "0123456789abcdef"]
    place = data.draw(st.sampled_from(places))
    other = data.draw(st.sampled_from(sorted(set("0123456789abcdef") - {line[place]})))
    told = problems(*changed(number, place, other))
    assert f"line {number}: at least one digit is wrong" in told
    assert told.count("line ") == 1
    assert line[4:8] not in told


def test_two_digits_that_changed_places_are_found() -> None:
    line = LINES[1]
    swapped = line[:9] + line[10] + line[9] + line[11:]
    assert swapped != line
    assert "line 2: at least one digit is wrong" in problems(LINES[0], swapped, *LINES[2:])


def test_every_wrong_line_is_told_at_once() -> None:
    told = problems(LINES[0][:-1], LINES[1] + "g", LINES[3], LINES[3], LINES[4])
    assert "line 1: 35 digits instead of 36" in told
    assert "line 2: 'g' is no digit" in told
    assert "line 4: it comes twice" in told
    assert "line 3: missing" in told and "line 6: missing" in told


def test_a_line_under_the_number_of_another_is_found() -> None:
    moved = "2" + LINES[0][1:]
    assert "line 2: at least one digit is wrong" in problems(LINES[0], moved, *LINES[2:])


def test_lines_of_two_pages_are_found_by_the_last_one() -> None:
    other = paper.lines(Paper(RID, MasterKeys(bytes(32), bytes(32))))
    assert "don't belong together" in problems(*LINES[:4], other[4], LINES[5])


def test_a_line_is_judged_as_it_is_typed() -> None:
    assert paper.line_problem(3, LINES[2]) == ""
    assert paper.line_problem(3, LINES[2][3:]) == ""
    assert paper.line_problem(3, LINES[3]) == "this is not line 3"
    assert paper.line_problem(3, "") == "0 digits instead of 36"


def test_the_keys_are_not_shown() -> None:
    assert bytes(range(32)).hex() not in repr(PAPER)
