"""What must lose nothing is tested branch by branch, and what is left out says why."""

from __future__ import annotations

import re

import pytest

from tests.architecture.source import Source, planted, sources
from tests.coverage import MEASURED, ROOT, TESTS, main

_EXCUSED = re.compile(r"# pragma: no cover(?! - \w+ \w+)")


def without_reason(tree: list[Source]) -> list[str]:
    return [source.path for source in tree if _EXCUSED.search(source.text)]


def test_each_line_that_no_test_reaches_says_why() -> None:
    assert without_reason(list(sources())) == []
    plant = planted("drvm/store/s3.py", "x = 1  # pragma: no cover\n")
    assert without_reason([plant]) == ["drvm/store/s3.py"]


def test_what_is_measured_and_its_tests_are_there() -> None:
    assert [name for name in (*MEASURED, *TESTS) if not (ROOT / name).is_file()] == []


@pytest.mark.long
def test_every_branch_of_what_must_lose_nothing_is_taken() -> None:
    assert main() == 0
