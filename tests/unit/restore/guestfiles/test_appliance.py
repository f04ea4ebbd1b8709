"""What an appliance needs, and what those of killed hosts leave."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed, RestoreError
from drvm.restore.guestfiles import appliance


class Answers:
    """Processes that all end in the same way."""

    def __init__(self, failure: ProcessFailed | None = None) -> None:
        self._failure = failure

    def run(self, argv, **_):
        if self._failure is not None:
            raise self._failure


def test_a_missing_library_is_told_with_its_package():
    with pytest.raises(RestoreError, match="libguestfs is not installed") as caught:
        appliance.require(Answers(ProcessFailed("python failed (1)")))
    assert "apt install libguestfs0" in caught.value.hint


@pytest.mark.parametrize(
    ("kernels", "words"), [((), "no kernel"), (("vmlinuz-6",), "can't be read")]
)
def test_a_kernel_that_can_not_be_had_is_told(monkeypatch, tmp_path, kernels, words):
    monkeypatch.setattr(appliance, "KERNELS", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for name in kernels:
        (tmp_path / name).touch()
    with pytest.raises(RestoreError, match=words) as caught:
        appliance.require(Answers())
    assert caught.value.hint


def test_only_old_directories_that_nobody_listens_in_are_swept(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new, used = (tmp_path / f"drvm-files-{name}" for name in ("old", "new", "used"))
    for directory in (old, new, used, tmp_path / "other"):
        directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(used / "socket"))
        door.listen(1)
        for directory in (old, used, tmp_path / "other"):
            os.utime(directory, (0, 0))
        appliance.sweep(SystemClock())
    left = {path.name for path in Path(tmp_path).iterdir()}
    assert left == {"drvm-files-new", "drvm-files-used", "other"}


def test_an_appliance_in_use_is_swept_past_however_often_others_have_looked(monkeypatch, tmp_path):
    """Each look is a connection that nobody takes, and the room for those is bounded."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = tmp_path / "drvm-files-used"
    used.mkdir()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1)  # else one that waits would wait for ever
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(used / "socket"))
        door.listen(1)
        os.utime(used, (0, 0))
        try:
            for _ in range(5):
                appliance.sweep(SystemClock())
        finally:
            socket.setdefaulttimeout(before)
    assert used.exists()
