"""Block devices for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import ProcessFailed
from drvm.core.process import Processes


@contextlib.contextmanager
def loop_device(image: Path, processes: Processes) -> Iterator[Path]:
    """One with the content of ``image``; where there are none, the test is skipped."""
    try:
        said = processes.run(["losetup", "--find", "--show", str(image)], timeout_s=30)
    except ProcessFailed as problem:
        pytest.skip(f"there are no loop devices: {problem}")
    device = Path(said.stdout.decode().strip())
    try:
        yield device
    finally:
        processes.run(["losetup", "--detach", str(device)], timeout_s=30)
