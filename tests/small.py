"""Small file systems that fill up, and stores that hang."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import ProcessFailed
from drvm.core.process import SystemProcesses
from drvm.store.memory import MemoryStore


@contextlib.contextmanager
def small_file_system(directory: Path, size_bytes: int, *, options: str = "") -> Iterator[Path]:
    """A tmpfs on ``directory``, which is made and removed; reachable for QEMU's user."""
    processes = SystemProcesses()
    directory.mkdir()
    words = f"size={size_bytes},mode=711{options}"
    try:
        processes.run(["mount", "-t", "tmpfs", "-o", words, "drvm", str(directory)], timeout_s=30)
    except ProcessFailed as problem:
        directory.rmdir()
        pytest.skip(f"nothing can be mounted here: {problem}")
    try:
        yield directory
    finally:
        processes.run(["umount", "--lazy", str(directory)], timeout_s=30)
        directory.rmdir()


def fill(directory: Path, left_bytes: int) -> Path:
    """A file that takes all but ``left_bytes``."""
    path = directory / "filler"
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(directory).free - left_bytes)
    return path


class HangingStore:
    """Takes nothing while ``hangs``; ``hung`` is set as soon as somebody waits for that."""

    def __init__(self) -> None:
        self._inner = MemoryStore()
        self._go_on = threading.Event()
        self._go_on.set()
        self.hung = threading.Event()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        self._go_on.clear()
        try:
            yield
        finally:
            self._go_on.set()

    def put(self, name: str, data: bytes) -> None:
        self._wait()
        self._inner.put(name, data)

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._wait()
        self._inner.put_if_absent(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _wait(self) -> None:
        if not self._go_on.is_set():
            self.hung.set()
            assert self._go_on.wait(300), "the test forgot the store"
