"""A scan that found nothing says nothing where the file systems had gone meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drvm.drill.checks.scan import still_shown


class Showing:
    """Stands for the process that shows the file systems."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def returncode(self) -> int | None:
        return self.code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    (tmp_path / "vda1" / "etc").mkdir(parents=True)
    (tmp_path / "vdb1").mkdir()
    return tmp_path


def shown(place: Path, code: int | None = None) -> bool:
    showing: Any = Showing(code)
    return still_shown(showing, place)


def test_what_can_be_read_when_the_scan_is_over_was_there(place: Path) -> None:
    assert shown(place)


def test_what_showed_the_file_systems_must_not_have_ended(place: Path) -> None:
    assert not shown(place, 0)


def test_each_file_system_must_be_readable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.iterdir

    def broken(path: Path) -> Any:
        if path.name == "vdb1":
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", broken)
    assert not shown(place)


def test_where_nothing_answers_any_more_it_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: Path) -> bool:
        raise OSError(22, "Invalid argument")  # seen where the appliance was killed

    monkeypatch.setattr(Path, "is_mount", dead)
    assert not shown(place)


def test_what_is_unmounted_is_not_there(place: Path) -> None:
    assert not shown(place / "vda1")
