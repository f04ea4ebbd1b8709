"""Processes that were left to themselves are found again, and ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

from drvm.core import detached
from drvm.core.process import SystemProcesses


def test_a_detached_process_is_found_and_ended_by_a_word_of_its_command_line(
    tmp_path: Path,
) -> None:
    word = str(tmp_path / "mine")
    never = tmp_path / "never"  # a shell that reads it waits in itself: a child has its words too
    os.mkfifo(never)
    for stubborn in ("", "trap '' TERM; "):
        waits = f"{stubborn}while :; do read -r line <{never}; done"
        child = SystemProcesses().spawn(["sh", "-c", waits, word], detach=True)
        try:
            for _ in range(500):  # its command line is there a moment after its start
                if detached.running(word):
                    break
                time.sleep(0.01)
            assert detached.running(word) == [child.pid]
            assert detached.running(word[:-1]) == []
            detached.end_running(word, timeout_s=0.5)
            assert child.wait(10)
            assert detached.running(word) == []
        finally:
            child.stop(0)
    detached.end_running(word)
