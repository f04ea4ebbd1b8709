from __future__ import annotations

import datetime as dt
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drvm.cli.commands import status
from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.daemon.looked import LOOKED, Looked
from drvm.daemon.status import Record, judge
from drvm.notify import outbox
from drvm.notify.outbox import Outbox
from drvm.report.input import ReportInput
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.runs.model import Run
from drvm.runs.owner import this_process
from tests.commands import Result, run_command
from tests.unit.report.results import make_report, make_row

CONFIG = """
repository: {{url: "file://{directory}/repository"}}
hosts: [{{uri: "test://{directory}/none.xml"}}]
state_dir: {directory}/state
cache_dir: {directory}/cache
policies:
  - {{name: nightly, vms: ["web*"], schedule: "0 3 * * *", drill: {{schedule: "0 5 * * 0"}}}}
notify: [{{name: chat, webhook: {{url_file: /nowhere}}}}]
"""
NO_MACHINES = (
    "<node><cpu><mhz>1000</mhz><model>x</model><active>1</active><nodes>1</nodes>"
    "<sockets>1</sockets><cores>1</cores><threads>1</threads></cpu><memory>1048576</memory></node>"
)
_now = SystemClock().now


class Appliance:
    """A config, a repository in a directory, and a host of libvirt's own test driver."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        config = directory / "config.yaml"
        config.write_text(CONFIG.format(directory=directory))
        (directory / "none.xml").write_text(NO_MACHINES)
        self.env = {"DRVM_CONFIG": str(config), "DRVM_PASSWORD": "a long passphrase"}

    def drvm(self, *arguments: str, **env: str) -> Result:
        return run_command(arguments, self.env | env)

    def record(self) -> RunLog:
        return RunLog(self.directory / "state" / RUNS_FILE, SystemClock())


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    return Appliance(tmp_path)


@pytest.fixture
def seen(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the next ``status`` see this report instead of looking."""
    (appliance.directory / "repository").mkdir()

    def show(report: ReportInput) -> None:
        class Opened:
            def __enter__(self) -> None: ...
            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(status, "opened", lambda _invocation: Opened())
        monkeypatch.setattr(status, "gather_report", lambda _wiring, _runs: report)

    return show


def test_where_nothing_is_wrong_the_exit_code_is_0_and_a_line_says_so(appliance: Appliance) -> None:
    appliance.drvm("init")
    result = appliance.drvm("status")
    assert (result.code, result.err) == (0, "")
    first, *rest = result.out.splitlines()
    assert first == "drvm OK: 0 of 0 VMs are protected"
    assert [line.partition(":")[0] for line in rest] == ["next", "next", "daemon"]
    assert not (appliance.directory / "state" / RUNS_FILE).exists()


@pytest.mark.parametrize(
    ("row", "code", "first", "hint"),
    [
        (
            {"rpo_state": "missed", "rpo_age_seconds": 9e4},
            4,
            "drvm CRITICAL: web1: its last good point is 25 h 00 min old",
            "  -> drvm backup web1",
        ),
        (
            {"policy": None, "rpo_target_seconds": None},
            3,
            "drvm WARNING: web1: no policy covers it",
            "  -> name it",
        ),
    ],
)
def test_what_is_wrong_is_in_the_first_line_and_the_exit_code_with_a_hint_below(
    row: dict[str, Any], code: int, first: str, hint: str, appliance: Appliance, seen: Any
) -> None:
    seen(make_report(vms=(make_row(**row),)))
    result = appliance.drvm("status")
    assert result.code == code
    lines = result.out.splitlines()
    assert lines[0].startswith(first)
    assert lines[2].startswith(hint)
    document = appliance.drvm("status", "--json").document
    assert document["exit_code"] == code
    assert document["concerns"][0]["vm_uuid"] == "uuid-web1"


def test_what_a_blackout_keeps_from_beginning_comes_next_at_its_end() -> None:
    text = 'policies: [{name: a, vms: [x], schedule: "0 9 * * *", blackouts: ["08:00-18:00"]}]'
    settings = resolve(parse_config(text.encode(), "c.yaml", {}), {})
    now = dt.datetime(2026, 11, 24, 7, tzinfo=dt.UTC)
    told = judge(settings, Record(), None, None, now).upcoming
    assert told == ((now.replace(hour=18), "backup a"),)


def test_what_is_critical_comes_before_what_is_not_and_the_list_has_an_end(
    appliance: Appliance, seen: Any
) -> None:
    rows = [make_row(vm=f"web{n}", vm_uuid=f"u{n}", policy=None) for n in range(50)]
    rows.append(make_row(vm="db1", vm_uuid="db", rpo_state="never", last_point=None))
    seen(make_report(vms=tuple(rows)))
    lines = appliance.drvm("status").out.splitlines()
    assert lines[1].startswith("critical: db1: ")
    assert sum(line.startswith("warning: ") for line in lines) == 19
    assert "and 31 more: drvm report" in lines


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "there is no directory"),
        ({"DRVM_REPOSITORY": "s3://bucket/x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
          "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "x"},
         "can't be looked at"),
    ],
    ids=["no directory", "no server"],
)  # fmt: skip
def test_a_repository_that_is_away_is_critical_and_no_traceback(
    env: dict[str, str], words: str, appliance: Appliance
) -> None:
    result = appliance.drvm("status", **env)
    assert (result.code, result.err) == (4, "")
    assert words in result.out.splitlines()[0]
    assert result.out.splitlines()[2].startswith("  -> ")


def test_a_host_that_is_away_is_critical_and_the_repository_is_seen_all_the_same(
    appliance: Appliance,
) -> None:
    appliance.drvm("init")
    result = appliance.drvm("status", "--json", LIBVIRT_DEFAULT_URI="qemu+tcp://127.0.0.1:1/system")
    assert result.code == 4
    assert result.document["repository"]["reachable"] is True
    assert result.document["concerns"][0]["key"].startswith("host ")


def test_a_wrong_passphrase_is_critical(appliance: Appliance) -> None:
    appliance.drvm("init")
    result = appliance.drvm("status", DRVM_PASSWORD="another passphrase")
    assert result.code == 4 and "key slots" in result.out


def test_what_does_not_answer_in_time_is_critical_and_is_not_waited_for(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    left: list[int] = []
    monkeypatch.setattr(status, "gather_report", lambda *_: ended.wait(30))
    monkeypatch.setattr(status, "_leave", left.append)
    appliance.drvm("init")
    before_s = SystemClock().monotonic_s()
    result = appliance.drvm("status", "--timeout", "1s")
    ended.set()
    assert SystemClock().monotonic_s() - before_s < 10
    assert (result.code, left) == (4, [4])
    assert "did not answer within 1 s" in result.out


@pytest.mark.parametrize("text", ["", "5", "0s", "2h", "x"])
def test_a_time_limit_that_is_none_is_a_wrong_request(text: str, appliance: Appliance) -> None:
    assert appliance.drvm("status", "--timeout", text).code == 2


def test_a_config_that_is_wrong_is_told_as_by_every_verb(appliance: Appliance) -> None:
    Path(appliance.env["DRVM_CONFIG"]).write_text("nonsense: 1\n")
    assert appliance.drvm("status").code == 2


def test_what_runs_is_shown_with_how_far_it_is(appliance: Appliance, seen: Any) -> None:
    seen(make_report())
    run = Run(
        "r1", "backup nightly", "backup", "web1", "uuid-web1", "kvm1", None,
        _now() - dt.timedelta(minutes=4),
    )  # fmt: skip
    with appliance.record() as record:
        record.begin(run)
        record.progress("r1", "reading vda", 3 * 2**30, 4 * 2**30)
        (line,) = [
            line for line in appliance.drvm("status").out.splitlines() if line.startswith("runs:")
        ]
        (told,) = appliance.drvm("status", "--json").document["running"]
    assert line.startswith("runs: backup nightly: web1: reading vda, 75 % of 4.0 GiB, for 4 min")
    assert (told["id"], told["done_bytes"]) == ("r1", 3 * 2**30)


def note_daemon(appliance: Appliance, owner: str, looked_s_ago: float, **life: Any) -> None:
    looked = Looked(
        owner=owner,
        started=_now() - dt.timedelta(days=1),
        looked=_now() - dt.timedelta(seconds=looked_s_ago),
        **life,
    )
    with appliance.record() as record:
        record.set_fact(LOOKED, msgspec.json.encode(looked).decode())


@pytest.mark.parametrize(
    ("alive", "looked_s_ago", "code", "words"),
    [
        (True, 20, 0, "daemon: runs since"),
        (True, 3600, 4, "has not looked for"),
        (False, 20, 3, "no daemon runs here any more"),
        (False, 90 * 86400, 0, "daemon: none runs here"),
    ],
    ids=["it runs", "it hangs", "it died", "it is none any more"],
)
def test_a_daemon_that_should_be_there_and_is_not_is_told(
    alive: bool, looked_s_ago: float, code: int, words: str, appliance: Appliance, seen: Any
) -> None:
    seen(make_report())
    owner = this_process() if alive else "1 1 another-boot"
    note_daemon(appliance, owner, looked_s_ago)
    result = appliance.drvm("status")
    assert result.code == code, result.out
    assert words in result.out
    assert appliance.drvm("status", "--json").document["daemon"]["running"] == alive


def test_a_reload_is_told_beside_the_start_and_what_it_could_not_change(
    appliance: Appliance, seen: Any
) -> None:
    seen(make_report())
    note_daemon(appliance, this_process(), 20, config_read=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    result = appliance.drvm("status")
    assert result.code == 0
    assert ", with the config as it was read at 2026-01-02 00:00 UTC, looked at" in result.out
    note_daemon(appliance, this_process(), 3600, restart_for=("state_dir",))
    result = appliance.drvm("status")
    assert result.code == 3 and "the config has another state_dir" in result.out
    assert "has not looked for" not in result.out


def test_a_way_by_which_nobody_can_be_told_is_a_warning(appliance: Appliance, seen: Any) -> None:
    seen(make_report())
    box = Outbox(failure="no route", failing_since=_now() - dt.timedelta(hours=1), failed=7)
    with appliance.record() as record:
        record.set_fact("notify.chat", outbox.encode(box))
        record.set_fact("notify.of-an-older-config", outbox.encode(box))
    result = appliance.drvm("status", "--json")
    assert result.code == 3
    assert [way["failed"] for way in result.document["notify"]] == [7]
    assert "chat: no route" in result.document["summary"]


def test_names_of_guests_reach_no_terminal_raw(appliance: Appliance, seen: Any) -> None:
    seen(make_report(vms=(make_row(vm="\x1b[2Jweb\n", policy=None),)))
    result = appliance.drvm("status")
    assert "\x1b" not in result.out and "\\x1b[2Jweb" in result.out.splitlines()[0]
    json.loads(appliance.drvm("status", "--json").out)


def test_a_record_that_cant_be_read_is_no_silence(appliance: Appliance, seen: Any) -> None:
    seen(make_report())
    (appliance.directory / "state" / RUNS_FILE).mkdir(parents=True)
    result = appliance.drvm("status")
    assert result.code == 3 and "what jobs did here can't be told" in result.out
    assert "daemon: nobody can tell" in result.out


def test_image_files_are_no_vms(appliance: Appliance, seen: Any) -> None:
    seen(make_report(vms=(make_row(machine=False, rpo_state="missed"),)))
    assert appliance.drvm("status").out.startswith("drvm OK: 0 of 0 VMs are protected")
