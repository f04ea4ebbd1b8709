from __future__ import annotations

import dataclasses
import datetime as dt
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import rfc3339
from drvm.core.errors import StoreUnreachable
from drvm.daemon.alarms import Rules
from drvm.daemon.looked import LOOKED, read_looked
from drvm.daemon.task import ANSWERED
from drvm.daemon.watch import Watch
from drvm.notify.model import Message
from drvm.notify.outbox import Outbox
from drvm.notify.postman import Postman
from drvm.report.input import ReportInput, RunRow
from drvm.runs.log import RunLog
from drvm.runs.model import Run, State
from drvm.runs.owner import is_alive
from tests.fakes.clock import FakeClock
from tests.unit.report.results import make_report, make_row

MISSED = {"rpo_state": "missed", "rpo_age_seconds": 9e4}


class Told(Postman):
    """Nobody is told, but it is noted."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.boxes: dict[str, Outbox] = {}

    def tell(self, messages: object) -> None:
        self.messages += messages  # type: ignore[operator]

    def outboxes(self) -> dict[str, Outbox]:
        return self.boxes

    def words(self) -> list[str]:
        return [f"{message.event} {message.key}" for message in self.messages]


class World:
    """A daemon's watch, and what it looks at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.record = RunLog(directory / "runs.db", self.clock)
        self.report = make_report()
        self.error: Exception | None = None
        self.told = Told()
        self.answers = True
        self.restart()

    def restart(self) -> None:
        self.watch = Watch(
            self.gather, self.record, self.clock, "kvm1", self.directory / "drvm.prom", Rules()
        )
        self.watch.tell_by(self.told)

    def gather(self) -> ReportInput:
        if self.error is not None:
            raise self.error
        return self.report

    def look(self, times: int = 1) -> list[str]:
        """What is told by so many looks, a minute apart."""
        before = len(self.told.messages)
        for _ in range(times):
            self.clock.sleep(60)
            if self.answers:
                self.record.set_fact(ANSWERED, rfc3339(self.clock.now()))
            self.watch.look(self.clock.now())
        return self.told.words()[before:]

    def run(self, number: int, state: State = "running", **fields: object) -> Run:
        usual = {
            "id": str(number),
            "job": "backup nightly",
            "kind": "backup",
            "vm": "web1",
            "vm_uuid": "uuid-web1",
            "host": "kvm1",
            "due": None,
            "started": self.clock.now(),
            "state": state,
            "ended": None if state == "running" else self.clock.now(),
        }
        return Run(**(usual | fields))  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.record.close()


def metric(world: World, name: str) -> str:
    text = (world.directory / "drvm.prom").read_text()
    return next(line.split()[-1] for line in text.splitlines() if line.startswith(name))


def test_a_concern_is_told_and_its_end_also_by_a_daemon_that_began_meanwhile(world: World) -> None:
    world.report = make_report(vms=(make_row(**MISSED),))
    assert world.look(3) == ["raised rpo uuid-web1"]
    world.restart()
    assert world.look(3) == []
    world.report = make_report()
    world.restart()
    assert world.look(5) == ["over rpo uuid-web1"]


def test_a_repository_that_is_away_withdraws_nothing_and_is_told_of_after_some_minutes(
    world: World,
) -> None:
    world.report = make_report(vms=(make_row(**MISSED),))
    world.look()
    world.error = StoreUnreachable("the store does not answer")
    assert world.look(5) == []
    assert world.look(30) == ["raised daemon away"]
    assert "the store does not answer" in world.told.messages[-1].text
    assert metric(world, "drvm_repository_reachable") == "0.0"
    assert metric(world, "drvm_vm_rpo_met") == "0.0"
    world.error = None
    assert world.look(5) == ["over daemon away"]
    assert metric(world, "drvm_repository_reachable") == "1.0"


def test_nothing_that_the_daemon_sees_of_itself_is_over_since_it_was_read_anew(
    world: World,
) -> None:
    world.look()
    world.error, world.answers = StoreUnreachable("the store does not answer"), False
    assert world.look(16) == ["raised daemon away"]
    world.restart()
    assert world.look(4) == [], "it is away still"
    world.error = None
    assert sorted(world.look(30)) == ["over daemon away", "raised daemon source"]
    world.restart()
    assert world.look(14) == [], "nobody answered since"
    world.error = StoreUnreachable("the store does not answer")
    assert world.look(8) == ["raised daemon away"], "nor can it be told"
    world.error, world.answers = None, True
    assert sorted(world.look(6)) == ["over daemon away", "over daemon source"]


def test_a_run_that_stands_still_is_not_over_since_the_config_was_read_anew(world: World) -> None:
    world.record.begin(world.run(1))
    world.look()
    world.clock.sleep(6 * 3600)
    assert world.look() == ["raised daemon stuck 1"]
    world.restart()
    assert world.look(5) == []
    world.record.progress("1", "reading", 5, None)
    assert world.look(5) == ["over daemon stuck 1"]


def test_a_bug_in_looking_ends_nothing_and_is_told(world: World) -> None:
    world.error = RuntimeError("oh")
    assert world.look(7) == ["raised daemon away"]


def test_a_host_that_is_away_withdraws_nothing_of_the_vms_that_it_may_have(world: World) -> None:
    world.report = make_report(vms=(make_row(**MISSED),))
    world.look()
    unseen = make_row(host="not seen", policy=None, rpo_state="no-target")
    away = make_report(vms=(unseen,), unreachable=(("qemu+ssh://b/system", "no route"),))
    world.report = away
    assert world.look(4) == [], "libvirtd may only be restarted"
    assert world.look(5) == ["raised host qemu+ssh://b/system"]
    world.report = make_report()
    assert sorted(world.look(4)) == ["over host qemu+ssh://b/system", "over rpo uuid-web1"]


def test_a_twin_that_is_held_is_told_after_some_minutes_and_over_when_it_is_undefined(
    world: World,
) -> None:
    away = (("qemu+ssh://kvm1/system", "no route"),)
    held = make_row(host="not seen", held="it is off here, and its host is away")
    world.report = make_report(vms=(held,), unreachable=away)
    assert world.look(4) == []
    assert "raised held uuid-web1" in world.look(3)
    world.report = make_report(vms=(make_row(host="not seen"),), unreachable=away)
    assert world.look(4) == ["over held uuid-web1"]


def test_a_failure_is_over_when_it_is_done_and_not_while_it_is_tried_again(world: World) -> None:
    def seen(state: str, retry_at: dt.datetime | None = None) -> None:
        run = RunRow(
            job="backup nightly", kind="backup", vm="web1", vm_uuid="uuid-web1", host="kvm1",
            started=world.clock.now(), ended=world.clock.now(), state=state, retry_at=retry_at,
        )  # fmt: skip
        world.report = make_report(runs=(run,))

    seen("failed")
    assert world.look() == ["raised failure backup nightly uuid-web1"]
    for state in ("failed", "stopped", "lost"):
        seen(state, world.clock.now())
        assert world.look(9) == [], state
    seen("done")
    assert world.look(4) == ["over failure backup nightly uuid-web1"]


def test_a_failure_is_over_when_another_host_has_made_a_point(world: World) -> None:
    now, hour = make_report().generated, dt.timedelta(hours=1)
    run = RunRow(
        job="backup nightly", kind="backup", vm="web1", vm_uuid="uuid-web1", host="kvm1",
        started=now - 2 * hour, ended=now - hour, state="failed",
    )  # fmt: skip
    old, new = (make_row(last_point_created=at) for at in (now - 9 * hour, now))
    world.report = make_report(runs=(run,), vms=(old,))
    assert world.look() == ["raised failure backup nightly uuid-web1"]
    world.report = make_report(runs=(run,), vms=(new,))
    assert world.look(4) == ["over failure backup nightly uuid-web1"]


def test_a_vm_that_has_just_joined_is_given_some_time_for_its_first_point(world: World) -> None:
    never = make_report(vms=(make_row(rpo_state="never", last_point=None),))
    world.report = never
    assert world.look(14) == []
    world.report = make_report()
    assert world.look(5) == []
    world.report = never
    assert world.look(17) == ["raised rpo uuid-web1"]
    world.restart()
    assert world.look(5) == []
    world.report = make_report()
    assert world.look(4) == ["over rpo uuid-web1"]


def test_a_run_that_stands_still_is_told_and_silences_the_dead_mans_ping(world: World) -> None:
    world.record.begin(world.run(1))
    for _ in range(6):
        world.look()
        world.clock.sleep(3600)
        world.record.progress("1", "reading", int(world.clock.passed_s), None)
    world.look()
    assert world.watch.works()
    told = []
    for _ in range(7):
        told += world.look()
        world.clock.sleep(3600)
    world.look()
    assert told == ["raised daemon stuck 1"]
    assert not world.watch.works()
    world.record.finish(world.run(1, "done"))
    assert world.look(4) == ["over daemon stuck 1"]
    assert world.watch.works()


def test_a_source_that_says_nothing_is_told_and_silences_the_ping(world: World) -> None:
    world.look()
    world.answers = False
    assert world.look(14) == []
    assert world.look(2) == ["raised daemon source"]
    assert not world.watch.works()
    world.answers = True
    assert world.look(4) == ["over daemon source"]
    assert world.watch.works()


def test_the_dead_mans_ping_is_silent_while_nobody_looks(world: World) -> None:
    assert not world.watch.works()  # a daemon that dies again and again before its first look
    world.look()
    world.clock.sleep(299)
    assert world.watch.works()
    world.clock.sleep(10)
    assert not world.watch.works()


def test_a_way_that_tells_nobody_is_told_by_the_others(world: World) -> None:
    world.told.boxes["mail"] = Outbox(failure="no route", failing_since=world.clock.now(), failed=3)
    assert world.look(14) == []
    assert world.look(2) == ["raised daemon notify mail"]
    assert metric(world, "drvm_notifications_failed_total") == "3.0"


def test_failures_are_counted_once_each_also_over_a_restart(world: World) -> None:
    for number, state in enumerate(("failed", "done", "failed")):
        world.clock.sleep(5)
        world.record.finish(world.run(number, state))  # type: ignore[arg-type]
    world.look(2)
    assert metric(world, "drvm_job_failures_total") == "2.0"
    world.restart()
    world.clock.sleep(5)
    world.record.finish(world.run(9, "failed"))
    world.look(2)
    assert metric(world, "drvm_job_failures_total") == "3.0"
    assert 'job="backup nightly"' in world.watch.metrics()


def test_a_failure_is_counted_though_it_lasted_long_and_is_recorded_late(world: World) -> None:
    long = world.run(0, "running")
    world.clock.sleep(50)
    ended = dataclasses.replace(long, ended=world.clock.now(), state="failed")
    for number in range(1, 40):  # what began, and ended, since
        world.record.finish(world.run(number, "done", vm_uuid="another"))
    world.clock.sleep(5)
    world.watch.look(world.clock.now())
    world.record.finish(ended)  # its file was busy for some seconds
    world.look(3)
    assert metric(world, "drvm_job_failures_total") == "1.0"


def test_the_textfile_is_whole_for_all_users_and_what_stands_in_its_way_is_told(
    world: World,
) -> None:
    world.look()
    path = world.directory / "drvm.prom"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    (world.directory / ".drvm.prom.drvm-partial").write_text("left by one that was killed")
    world.look()
    assert [entry.name for entry in world.directory.iterdir() if "prom" in entry.name] == [
        "drvm.prom"
    ]
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    assert world.look(3) == ["raised daemon textfile"]


def test_others_learn_that_the_daemon_lives_and_what_it_saw(world: World) -> None:
    world.error = StoreUnreachable("away")
    world.look()
    looked = read_looked(world.record.fact(LOOKED))
    assert looked is not None
    assert (looked.looked, looked.problem) == (world.clock.now(), "away")
    assert is_alive(looked.owner)
    assert read_looked("nonsense") is None


def test_metrics_can_be_asked_for_before_the_first_look(world: World) -> None:
    assert "drvm_repository_reachable 0.0" in world.watch.metrics()


def test_metrics_say_what_the_daemon_sees_of_itself_too(world: World) -> None:
    world.error = StoreUnreachable("no route")
    world.look(7)
    assert 'drvm_concerns{kind="failure",severity="critical"} 1.0' in world.watch.metrics()
