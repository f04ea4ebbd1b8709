"""The frame of the command line, as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")
ROOT = PROGRAM.parents[3]


def environ(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def drvm(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environ(**more),
    )


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("nothing", 0),
        ("failed", 1),
        ("usage", 2),
        ("preflight", 1),
        ("warnings", 3),
        ("damage", 4),
        ("drill", 4),
        ("repository", 10),
        ("locked", 11),
        ("key", 12),
        ("denied", 1),
        ("memory", 1),
        ("interrupt", 130),
    ],
)
def test_exit_codes_are_those_of_the_contract(what: str, code: int) -> None:
    assert drvm("-v", "try", what).returncode == code


def test_an_error_is_a_line_and_a_hint_on_stderr() -> None:
    done = drvm("try", "failed")
    assert (done.stdout, done.stderr) == (
        "",
        "drvm: error: the host said no\nhint: ask again\n",
    )


def test_every_problem_of_a_plan_is_listed() -> None:
    assert drvm("try", "preflight").stderr.splitlines()[1:] == ["  no space", "  no network"]


def test_control_characters_never_reach_the_terminal() -> None:
    assert "\x1b" not in drvm("try", "usage").stderr


def test_with_json_an_error_is_a_document_wherever_the_option_stands() -> None:
    for arguments in (["--json", "try", "locked"], ["try", "--json", "locked"]):
        done = drvm(*arguments)
        assert json.loads(done.stdout) == {
            "error": {
                "message": "somebody else is at it",
                "hint": "",
                "exit_code": 11,
                "problems": [],
            }
        }
        assert "somebody else" in done.stderr


def test_with_json_there_is_only_one_document_also_when_a_drill_fails() -> None:
    done = drvm("--json", "try", "answer-then-fail")
    assert json.loads(done.stdout) == {"drills": []}
    assert done.returncode == 4


def test_an_unknown_verb_is_a_usage_error_with_a_suggestion() -> None:
    done = drvm("confg")
    assert done.returncode == 2
    assert "no such command 'confg'" in done.stderr and "'config'" in done.stderr


@pytest.mark.parametrize("arguments", [["--nosuch"], ["try"], ["try", "a", "b"], ["try", "--x"]])
def test_wrong_usage_is_exit_2_and_json_where_asked(arguments: list[str]) -> None:
    done = drvm(*arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_without_a_verb_the_help_is_shown() -> None:
    done = drvm()
    assert done.returncode == 2 and "Verbs:" in done.stderr


def test_the_help_lists_every_verb_without_importing_any() -> None:
    script = (
        "import sys, drvm.cli.main as m; m.main(['--help']); "
        "sys.exit(any(n.startswith(('drvm.cli.commands.', 'rich', 'pydantic', 'boto3', 'jinja2'))"
        " for n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ(),
    )
    assert done.returncode == 0
    assert "config" in done.stdout and "completion" in done.stdout


def test_the_version_is_told() -> None:
    done = drvm("--version")
    assert done.returncode == 0 and done.stdout.startswith("drvm ")


def test_a_bug_is_one_line_and_its_traceback_a_file(tmp_path: Path) -> None:
    done = drvm("try", "bug", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "this is a bug in drvm: KeyError" in done.stderr and "Traceback" not in done.stderr
    (trace,) = tmp_path.iterdir()
    assert str(trace) in done.stderr and "Traceback" in trace.read_text()
    assert trace.stat().st_mode & 0o077 == 0


def test_with_v_the_traceback_of_a_bug_is_shown(tmp_path: Path) -> None:
    done = drvm("-v", "try", "bug", TMPDIR=str(tmp_path))
    assert "Traceback" in done.stderr and not list(tmp_path.iterdir())


def test_a_refusal_of_the_system_is_no_bug() -> None:
    assert "permission denied: /var/lib/drvm" in drvm("try", "denied").stderr


@pytest.mark.parametrize(
    ("flags", "lines"), [(["-q"], 1), ([], 2), (["-v"], 3), (["-vv"], 4), (["-v", "-v"], 4)]
)
def test_logs_go_to_stderr_as_much_as_asked_for(flags: list[str], lines: int) -> None:
    for arguments in ([*flags, "try", "log"], ["try", *flags, "log"]):
        done = drvm(*arguments)
        assert len(done.stderr.splitlines()) == lines
        assert done.stdout == "" and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "shown"), [([], "reading vda\n"), (["-q"], ""), (["--json"], "")]
)
def test_progress_in_a_log_is_a_line_per_stage(flags: list[str], shown: str) -> None:
    assert drvm(*flags, "try", "work").stderr == shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_after_its_clean_up(number: signal.Signals) -> None:
    code, told = signalled("wait", [number])
    assert code == 130
    assert "cleaned up\n" in told and "drvm: error:" in told and "Traceback" not in told


def test_a_second_signal_does_not_break_the_clean_up() -> None:
    code, told = signalled("stubborn", [signal.SIGTERM, signal.SIGTERM])
    assert code == 130
    assert "please wait" in told and "cleaned up\n" in told


def signalled(what: str, numbers: list[signal.Signals]) -> tuple[int, str]:
    """Send the first signal when the work has begun, the others when the clean-up has."""
    process = subprocess.Popen(
        [sys.executable, "-u", str(PROGRAM), "try", what],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environ(),
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        told = process.stderr.readline()
        process.send_signal(numbers[0])
        for number in numbers[1:]:
            told += process.stderr.readline()
            process.send_signal(number)
        told += process.stderr.read()
        return process.wait(), told
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "try", "much"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_a_full_disk_behind_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "completion", "fish"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=environ(),
        )
    assert done.returncode == 1
    assert done.stderr.startswith("drvm: error: no space left on device")
    assert len(done.stderr.splitlines()) == 2


def test_the_passphrase_is_in_the_environment_of_no_child_also_not_of_libraries(
    tmp_path: Path,
) -> None:
    """The AWS SDK starts the command of a profile that names one, with all of our variables."""
    config, seen = tmp_path / "config", tmp_path / "seen"
    config.write_text(f"[default]\ncredential_process = sh -c 'env > {seen}; exit 1'\n")
    done = drvm(
        "points",
        DRVM_REPOSITORY="s3://bucket/there",
        DRVM_PASSWORD="planted secret",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_CONFIG_FILE=str(config),
        HOME=str(tmp_path),
    )
    assert done.returncode == 1 and "no usable credentials" in done.stderr
    assert "AWS_CONFIG_FILE" in seen.read_text()
    assert "planted" not in seen.read_text()
