"""What tests of bad input share: one clear line, a hint, the right exit code, nothing written."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drvm.core.errors import ProcessFailed
from drvm.core.process import Processes
from tests.appliance import Appliance, Result


def refused(
    appliance: Appliance,
    *arguments: str,
    code: int,
    says: str,
    hint: str,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run a command that must fail with ``code``, one error line with ``says``, and a hint."""
    result = appliance.drvm(*arguments, expect=code, env=env)
    assert_clear(result.err, says, hint)
    assert result.out == ""
    return result


def assert_clear(told: str, says: str, hint: str) -> None:
    lines = told.splitlines()
    errors = [line for line in lines if line.startswith("drvm: error: ")]
    assert len(errors) == 1 and says in errors[0], told
    hints = [line for line in lines if line.startswith(("hint: ", "  "))]
    assert any(hint in line for line in hints), told
    assert "bug in drvm" not in told and "Traceback" not in told


@contextlib.contextmanager
def unchanged(*places: Path) -> Iterator[None]:
    """No file or directory in ``places`` appears, goes away or changes."""
    before = [_tree(place) for place in places]
    yield
    assert [_tree(place) for place in places] == before


def _tree(place: Path) -> dict[str, str] | None:
    """Relative path -> what is there; ``None`` where there is nothing."""
    if not place.exists():
        return None
    return {
        str(path.relative_to(place)): _look(path)
        for path in itertools.chain([place], place.rglob("*"))
    }


def _look(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return "/" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def mounted(processes: Processes, place: Path, *options: str) -> Iterator[Path]:
    """``mount OPTIONS PLACE`` for as long as the context lasts; skips where nobody may mount."""
    place.mkdir(exist_ok=True)
    try:
        processes.run(["mount", *options, str(place)], timeout_s=30)
    except ProcessFailed as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield place
    finally:
        processes.run(["umount", str(place)], timeout_s=30)


def small_disk(processes: Processes, place: Path) -> contextlib.AbstractContextManager[Path]:
    """A file system of 1 MiB."""
    return mounted(processes, place, "-t", "tmpfs", "-o", "size=1m,mode=0755", "tmpfs")


def read_only(
    processes: Processes, source: Path, place: Path
) -> contextlib.AbstractContextManager[Path]:
    """``source``, seen at ``place`` without the right to write, for root too."""
    return mounted(processes, place, "-o", "bind,ro", str(source))
