"""The allow list itself, and the copying by it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.restore.machine import device_rules, machine_rules
from drvm.restore.machine.allowlist import MAX_NOTES, Copier, Notes, Rule
from drvm.restore.machine.values import NUMBER, ON_OFF, ZONE, rule

_PATHS = (
    "/orig/x",
    "//orig",
    "orig/x",
    "./x",
    "../x",
    "file:/orig/x",
    "file:///orig",
    "unix:/orig",
    "x\n/orig",
    "/",
    "\\\\orig\\x",
    "~",
    "..",
    "",
    "a b\tc",
    "x,file=y",
    "x;y",
    "$(x)",
    "é" * 3,
)


def _all_rules() -> Iterator[tuple[str, Rule]]:
    for module in (machine_rules, device_rules):
        for name, value in vars(module).items():
            if isinstance(value, Rule):
                yield name, value
            elif isinstance(value, Mapping):
                for key, found in value.items():
                    if isinstance(found, Rule):
                        yield f"{name}[{key}]", found


def _patterns(where: str, found: Rule) -> Iterator[tuple[str, re.Pattern[str]]]:
    for name, pattern in found.attributes.items():
        yield f"{where}@{name}", pattern
    if found.text is not None:
        yield f"{where}#", found.text
    for name, child in found.children.items():
        yield from _patterns(f"{where}/{name}", child)


def test_no_value_that_the_allow_list_takes_can_be_a_path() -> None:
    seen = 0
    for where, found in _all_rules():
        for name, pattern in _patterns(where, found):
            seen += 1
            for path in _PATHS:
                if pattern is ZONE and path == "orig/x":
                    continue
                assert pattern.fullmatch(path) is None, (name, path)
    assert seen > 300


def test_what_no_rule_names_is_not_copied_and_said() -> None:
    source = ET.fromstring("<a known='1' foreign='2'><b state='on'/><c/><b state='off'/></a>")
    copier = Copier({})
    copy = copier.element(source, rule({"b": rule(state=ON_OFF)}, known=NUMBER), "a")
    assert copy is not None
    assert ET.tostring(copy) == b'<a known="1"><b state="on" /></a>'
    assert copier.dropped.lines() == ("a foreign=", "a/c", "a/b (one more than there may be)")


def test_an_element_without_what_it_needs_is_left_out_whole() -> None:
    copier = Copier({})
    assert (
        copier.element(ET.fromstring("<a x='no number'/>"), rule(need="x", x=NUMBER), "a") is None
    )
    assert copier.dropped.lines() == ("a (its x can't be restored)",)


def test_an_element_whose_text_does_not_match_is_left_out() -> None:
    copier = Copier({})
    assert copier.element(ET.fromstring("<a>12 KiB</a>"), rule(text=NUMBER), "a") is None


def test_text_around_children_is_not_copied() -> None:
    source = ET.fromstring("<a>text<b>more</b>tail</a>")
    copy = Copier({}).element(source, rule({"b": rule()}), "a")
    assert copy is not None
    assert "".join(copy.itertext()) == ""


def test_old_identifiers_are_renewed_in_any_case() -> None:
    copier = Copier({"aa:bb": "cc:dd"})
    assert copier.renew("x AA:bb aa:BB y") == "x cc:dd cc:dd y"


def test_notes_are_bounded_and_safe_to_print() -> None:
    notes = Notes()
    for number in range(MAX_NOTES + 5):
        notes.add(f"\x1b[2J{number}")
    lines = notes.lines()
    assert lines[0] == "\\x1b[2J0"
    assert lines[-1] == "and 5 more"
    assert len(lines) == MAX_NOTES + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("content in /srv/www here", "content in [path] here"),
        ("see https://wiki.example/a/b", "see https://wiki.example/a/b"),
        ("file:///etc/passwd", "file:[path]"),
        ("and/or 5 / 6 km/h", "and/or 5 / 6 km/h"),
        ("a=/b", "a=[path]"),
    ],
)
def test_prose_keeps_its_words_and_loses_its_paths(text: str, shown: str) -> None:
    assert Copier({}).prose(text, "description", max_chars=100) == shown


@given(st.text(max_size=60), st.text(max_size=60))
def test_prose_never_keeps_an_absolute_path(before: str, after: str) -> None:
    text = f"{before} /orig/x{after}"
    if "http" not in text:
        assert "/orig/" not in Copier({}).prose(text, "description", max_chars=1000)


def test_prose_is_cut_where_it_is_too_long() -> None:
    copier = Copier({})
    assert copier.prose("x" * 11, "title", max_chars=10) == "x" * 10
    assert copier.changed.lines() == ("title: cut after 10 characters",)


def test_what_is_copied_is_renewed_in_attributes_and_texts() -> None:
    source = ET.fromstring("<a x='17'>17</a>")
    copy = Copier({"17": "42"}).element(source, rule(text=NUMBER, x=NUMBER), "a")
    assert copy is not None
    assert (copy.get("x"), copy.text) == ("42", "42")
