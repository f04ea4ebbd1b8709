import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from drvm.core.text import printable


@given(st.text())
def test_nothing_that_terminals_act_upon_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)


@given(st.text())
def test_with_lines_only_line_feeds_are_left_of_the_control_characters(text: str) -> None:
    shown = printable(text, lines=True)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in shown if c != "\n")


def test_an_escape_sequence_is_written_out() -> None:
    assert printable("\x1b[2Jgone\u202e") == "\\x1b[2Jgone\\u202e"


def test_ordinary_letters_of_any_language_stay() -> None:
    assert printable("Grüße, 世界 ✓") == "Grüße, 世界 ✓"


def test_what_is_cut_is_said() -> None:
    assert printable("a" * 10, 4) == "aaaa… (6 more characters)"
