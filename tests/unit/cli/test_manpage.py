"""The man page is what the verbs say of themselves, and roff takes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drvm.cli.manpage import _text, man_page
from drvm.cli.registry import VERBS
from drvm.core.process import SystemProcesses

PAGE = Path(__file__).parents[3] / "docs" / "drvm.1"


def test_the_page_in_the_tree_is_current() -> None:
    assert man_page() == PAGE.read_text("utf-8"), "python -m drvm.cli.manpage > docs/drvm.1"


def test_every_verb_and_its_options_stand_in_it() -> None:
    page = man_page()
    assert [verb.name for verb in VERBS if f".SS drvm {verb.name}\n" not in page] == []
    assert ".B \\-\\-dry\\-run" in page and ".SS drvm boot" in page
    assert "SIGHUP" in page and "[default" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_roff_warns_of_nothing() -> None:
    output = SystemProcesses().run(
        ["groff", "-man", "-ww", "-Tutf8", str(PAGE)], timeout_s=60, env={"LC_ALL": "C.UTF-8"}
    )
    assert output.stderr == b"" and b"drvm" in output.stdout


@pytest.mark.parametrize(
    ("text", "roff"), [(".x", "\\&.x"), ("'x", "\\&'x"), ("a\\b", "a\\eb"), ("--x", "\\-\\-x")]
)
def test_text_means_nothing_to_roff(text: str, roff: str) -> None:
    assert _text(text) == roff
