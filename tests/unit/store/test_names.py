from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drvm.store.base import MAX_NAME_LENGTH, check_name, check_prefix, is_name

ALPHABET = "ABCXYZabcxyz0189._-"
SEGMENTS = st.text(ALPHABET, min_size=1, max_size=40).filter(lambda text: text not in (".", ".."))
NAMES = st.lists(SEGMENTS, min_size=1, max_size=8).map("/".join)


@pytest.mark.parametrize(
    "name",
    [
        "drvm.json",
        "keys/0",
        "packs/" + "0" * 64,
        "points/6e0f6a4e-9a3c-4c58-bb0e-1c2a9c6f1d11/00ff.1e2d",
        "final/00ff.1e2d",
        "...",
        "a/.hidden",
        "x" * 255,
    ],
)
def test_the_names_of_a_repository_are_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/../b",
        "a/.",
        "/a",
        "a/",
        "a//b",
        "a\n",
        "a\0b",
        "~a",
        "lost+found",
        "a\\b",
        "é",
        "\u0661",
        "x" * 256,
        "/".join(["x" * 100] * 6),
    ],
)
def test_what_a_file_system_or_a_url_might_misread_is_no_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match="not the name"):
        check_name(name)


@given(NAMES)
def test_segments_of_the_alphabet_make_names(name: str) -> None:
    assert is_name(name)


@given(st.text(ALPHABET + "/ ~%\\\n\0é", max_size=MAX_NAME_LENGTH + 10))
@example("a/" * 400 + "a")
def test_a_name_stays_below_the_directory_it_is_put_in(text: str) -> None:
    if is_name(text):
        parts = PurePosixPath("/root", text).parts
        assert "/".join(parts[2:]) == text
        assert not {"", ".", ".."} & set(parts[2:])
        assert text.isascii()
        assert len(text) <= MAX_NAME_LENGTH


@given(NAMES, st.integers(0, 400))
def test_every_beginning_of_a_name_is_a_prefix(name: str, length: int) -> None:
    assert check_prefix(name[:length]) == name[:length]


@pytest.mark.parametrize("prefix", ["/", "a//", "../", "a/../", "./", "a b", "a\n", "x" * 513])
def test_what_no_name_begins_with_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ValueError, match="beginning"):
        check_prefix(prefix)
