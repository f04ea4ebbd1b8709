"""Other processes: bounded in time and output, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drvm.core import process
from drvm.core.errors import ProcessFailed
from drvm.core.process import SystemProcesses


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_output_and_input_go_through() -> None:
    output = SystemProcesses().run(["sh", "-c", "cat; echo no >&2"], timeout_s=30, stdin=b"yes")
    assert (output.stdout, output.stderr) == (b"yes", b"no\n")


def test_a_failure_tells_the_last_words() -> None:
    with pytest.raises(ProcessFailed, match=r"sh failed \(7\): broken"):
        SystemProcesses().run(["sh", "-c", "echo broken >&2; exit 7"], timeout_s=30)


def test_a_failure_without_a_word_tells_its_code_alone() -> None:
    with pytest.raises(ProcessFailed) as caught:
        SystemProcesses().run(["false"], timeout_s=10)
    assert caught.value.message == "false failed (1)"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProcessFailed, match="no-such-program is not installed"):
        SystemProcesses().run(["no-such-program"], timeout_s=30)


def test_a_program_that_can_not_be_run_is_named_with_the_reason(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text("echo no first line that names a shell\n")
    program.chmod(0o600)
    with pytest.raises(ProcessFailed, match="hook can't be run: permission denied"):
        SystemProcesses().run([str(program)], timeout_s=30)
    program.chmod(0o700)
    with pytest.raises(ProcessFailed, match="hook can't be run: exec format error") as caught:
        SystemProcesses().spawn([str(program)])
    assert "#!" in caught.value.hint
    with pytest.raises(ProcessFailed, match="can't be run: not a directory"):
        SystemProcesses().run([f"{program}/x"], timeout_s=30)


def test_children_do_not_see_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    output = SystemProcesses().run(["env"], timeout_s=30, env={"EXTRA": "1"})
    assert b"planted" not in output.stdout
    assert b"EXTRA=1" in output.stdout


def test_too_much_output_is_an_error() -> None:
    with pytest.raises(ProcessFailed, match="more than 1000 bytes"):
        SystemProcesses().run(["seq", "10000"], timeout_s=30, max_output_bytes=1000)


def test_a_process_whose_time_is_up_may_clean_up_and_takes_its_children_along(
    tmp_path: Path,
) -> None:
    pids, cleaned = tmp_path / "pids", tmp_path / "cleaned"
    script = (
        f"trap 'touch {cleaned}; exit' TERM; sleep 1000 & echo $! > {pids}; "
        "while :; do sleep 0.05; done"
    )
    with pytest.raises(ProcessFailed, match="did not end within"):
        SystemProcesses().run(["sh", "-c", script], timeout_s=1)
    assert cleaned.exists()
    assert gone(int(pids.read_text()))


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    pid = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.05; done"
    with pytest.raises(ProcessFailed, match="did not end within"):
        SystemProcesses().run(["sh", "-c", script], timeout_s=1)
    assert gone(int(pid.read_text()))


def test_a_spawned_process_runs_on_until_it_is_stopped(tmp_path: Path) -> None:
    child = SystemProcesses().spawn(["sh", "-c", "echo up; sleep 1000"], log=tmp_path / "log")
    assert child.returncode() is None
    child.stop()
    child.stop()
    assert child.returncode() == -signal.SIGTERM


def test_a_detached_process_has_a_session_of_its_own() -> None:
    child = SystemProcesses().spawn(["sleep", "1000"], detach=True)
    try:
        deadline = time.monotonic() + 30
        while os.getsid(child.pid) != child.pid and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.getsid(child.pid) == child.pid
    finally:
        child.stop()


def test_a_child_that_talks_is_told_and_heard_line_by_line() -> None:
    child = SystemProcesses().spawn(["sh", "-c", "read a; echo $a; read b; echo $b"], talk=True)
    child.tell("one")
    child.tell("two")
    assert [child.hear(30), child.hear(30)] == ["one", "two"]
    assert child.wait(30)
    child.stop()


def test_a_child_that_is_silent_or_gone_is_not_waited_for_longer_than_said() -> None:
    child = SystemProcesses().spawn(["sh", "-c", "read a"], talk=True)
    with pytest.raises(ProcessFailed, match="said nothing"):
        child.hear(0.05)
    child.tell("go")
    assert child.wait(30)
    with pytest.raises(ProcessFailed, match="ended"):
        child.hear(30)
    with pytest.raises(ProcessFailed, match="does not listen"):
        child.tell("anybody?")
    child.stop()


def test_a_child_that_says_too_much_is_not_listened_to() -> None:
    child = SystemProcesses().spawn(["sh", "-c", "yes | tr -d '\\n'"], talk=True)
    with pytest.raises(ProcessFailed, match="not understood"):
        child.hear(30)
    child.stop()


def test_a_child_that_is_left_sees_the_end_and_is_reaped() -> None:
    child = SystemProcesses().spawn(["cat"], talk=True)
    child.leave()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child.pid}").exists()


def test_hidden_memory_is_neither_dumped_nor_looked_into() -> None:
    script = (
        "import ctypes, resource; from drvm.core.process import hide_memory; hide_memory();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"(0, 0) 0\n"


def test_output_is_bounded_while_it_is_written() -> None:
    with pytest.raises(ProcessFailed, match="wrote more than 1000 bytes"):
        SystemProcesses().run(["/bin/sh", "-c", "yes"], timeout_s=60, max_output_bytes=1000)


def test_much_input_and_output_cross_each_other() -> None:
    data = bytes(range(256)) * 8000
    assert SystemProcesses().run(["cat"], timeout_s=60, stdin=data).stdout == data


def test_a_process_that_does_not_listen_is_no_error() -> None:
    assert SystemProcesses().run(["true"], timeout_s=60, stdin=bytes(1 << 20)).stdout == b""


def test_what_a_process_leaves_behind_is_not_waited_for() -> None:
    output = SystemProcesses().run(["/bin/sh", "-c", "sleep 30 & echo done"], timeout_s=20)
    assert output.stdout == b"done\n"


def test_a_process_that_closes_its_output_is_waited_for() -> None:
    script = "exec >&- 2>&-; sleep 0.3; exit 3"
    with pytest.raises(ProcessFailed, match=r"failed \(3\)"):
        SystemProcesses().run(["/bin/sh", "-c", script], timeout_s=20)
    with pytest.raises(ProcessFailed, match="did not end"):
        SystemProcesses().run(["/bin/sh", "-c", "exec >&- 2>&-; sleep 9"], timeout_s=0.3)
