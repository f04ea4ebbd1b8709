"""``drvm run``: one job of the config now, in the record, with an exit code that says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, Interrupted, Locked
from drvm.core.progress import NoProgress, Progress
from drvm.daemon.alone import run_alone
from drvm.daemon.task import Outcome, Task
from drvm.daemon.tasks import ASKED
from drvm.runs.log import RUNS_FILE, RunLog
from tests.commands import Result, run_command
from tests.unit.repository.conftest import cheap_key_derivation

__all__ = ["cheap_key_derivation"]

CLOCK = SystemClock()
CONFIG = """
repository: {{url: "file://{0}/store", password_file: {0}/passphrase}}
hosts: [{{uri: "test:///default"}}]
state_dir: {0}/state
cache_dir: {0}/cache
policies:
  - {{name: nightly, vms: [test], schedule: "0 3 * * *", time_zone: Europe/Berlin}}
  - {{name: elsewhere, vms: ["*"], hosts: ["qemu+ssh://*"], drill: {{schedule: "0 5 * * 0"}}}}
prune: {{schedule: "0 13 * * *"}}
copies: [{{name: offsite, repository: {{url: "file://{0}/b", password_file: {0}/passphrase}}}}]
"""


class Here:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "passphrase").write_text("a passphrase for tests only")
        (directory / "passphrase").chmod(0o600)
        config = directory / "config.yaml"
        config.write_text(CONFIG.format(directory))
        self.env = {"DRVM_CONFIG": str(config), "PATH": "/usr/bin:/bin"}
        assert self.drvm("init").code == 0

    def drvm(self, *words: str) -> Result:
        return run_command(words, self.env)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_the_jobs_of_the_config_are_listed_with_their_schedules(here: Here) -> None:
    jobs = here.drvm("--json", "run", "--list").document["jobs"]
    assert [(job["job"], job["schedule"], job["time_zone"]) for job in jobs] == [
        ("backup nightly", "0 3 * * *", "Europe/Berlin"),
        ("backup elsewhere", None, None),
        ("drill elsewhere", "0 5 * * 0", "UTC"),
        ("prune", "0 13 * * *", "UTC"),
        ("gc", None, None),
        ("check", None, None),
        ("copy offsite", None, None),
    ]


@pytest.mark.parametrize("words", [[], ["backup"], ["backup", "weekly"], ["prune", "--list"]])
def test_what_is_no_job_is_a_wrong_request(here: Here, words: list[str]) -> None:
    assert here.drvm("run", *words).code == 2


@pytest.mark.parametrize("words", [["gc"], ["check"]])
def test_a_job_of_the_repository_is_done_and_in_the_record(here: Here, words: list[str]) -> None:
    done = here.drvm("--json", "run", *words)
    assert done.code == 0
    (run,) = done.document["runs"]
    with RunLog(here.directory / "state" / RUNS_FILE, CLOCK) as history:
        (kept,) = history.recent(5)
    assert (kept.id, kept.job, kept.state, kept.due) == (run["id"], words[0], "done", None)


def test_a_dry_run_says_which_vms_it_would_be_and_does_nothing(here: Here) -> None:
    planned = here.drvm("--json", "run", "backup", "nightly", "--dry-run").document
    assert [run["vm"] for run in planned["runs"]] == ["test"]
    assert not (here.directory / "state" / RUNS_FILE).exists()


def test_a_job_without_any_vm_says_so(here: Here) -> None:
    nothing = here.drvm("run", "backup", "elsewhere")
    assert nothing.code == 3 and "nothing to do for backup elsewhere" in nothing.err


def test_what_can_not_be_kept_on_record_is_done_and_told(here: Here) -> None:
    (here.directory / "state" / RUNS_FILE).mkdir(parents=True)
    done = here.drvm("run", "prune")
    assert done.code == 0 and "what was done may not be on record: " in done.err


def test_a_failure_gives_its_own_exit_code(here: Here) -> None:
    (here.directory / "passphrase").write_text("another passphrase for tests")
    assert here.drvm("run", "gc").code == 12


def task(vm: str, what: Any) -> Task:
    def run(progress: Progress) -> Outcome:
        progress.stage("working", 4)
        progress.advance(4)
        if isinstance(what, BaseException):
            raise what
        return what  # type: ignore[no-any-return]

    return Task("backup nightly", "backup", ASKED, run, vm=vm, vm_uuid=f"uuid of {vm}")


def test_one_that_fails_keeps_no_other_from_being_run_and_an_interruption_does(
    tmp_path: Path,
) -> None:
    tasks = [
        task("a", CaptureError("no agent", hint="install it")),
        task("b", Outcome("0123456789abcdef", 7, warned=True, message="crash-consistent")),
        task("c", Locked("busy")),
        task("d", KeyboardInterrupt()),
        task("e", Outcome()),
    ]
    with RunLog(tmp_path / "runs.db", CLOCK) as history:
        ended = list(run_alone(tasks, history, CLOCK, NoProgress()))
        kept = {run.vm: run for run in history.recent(9)}
    assert [(end.run.vm, end.run.state) for end in ended] == [
        ("a", "failed"),
        ("b", "warned"),
        ("c", "stopped"),
        ("d", "stopped"),
    ]
    assert [type(end.error) for end in ended] == [CaptureError, type(None), Locked, Interrupted]
    assert kept["b"].result == "0123456789abcdef" and kept["a"].hint == "install it"
    assert "e" not in kept and kept["b"].done_bytes == 4
