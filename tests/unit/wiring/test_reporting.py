"""What the report is told, without a host."""

from __future__ import annotations

import dataclasses
import datetime as dt
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import rfc3339
from drvm.core.ids import new_generation, new_point_id
from drvm.core.process import SystemProcesses
from drvm.core.units import GIB
from drvm.host.model import Host
from drvm.report.attention import attention
from drvm.report.model import encode_drill
from drvm.repository import keys, points
from drvm.repository.checks import CIRCLE, Arc, CheckRecord, History, Past, arc_fields
from drvm.repository.layout import point_object
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.repository import Repository
from drvm.runs.model import Kind, Run, State
from drvm.store.base import ObjectInfo
from drvm.store.memory import MemoryStore
from drvm.wiring.assembly import Wiring
from drvm.wiring.reporting import _checks, drill_of, gather_report
from tests.fakes.chain_host import FakeDomain, FakeHost
from tests.fakes.clock import FakeClock
from tests.unit.report.results import PNG, make_drill

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)
SIXTEENTH = CIRCLE // 16
ARCS = st.tuples(st.integers(0, 15), st.integers(1, 16))


def past(start: int, length: int, damaged: int = 0) -> Past:
    fields: dict[str, Any] = arc_fields(Arc(start * SIXTEENTH, length * SIXTEENTH))
    record = CheckRecord(
        **fields, rotates=True, seconds=1.0, packs=3, read_bytes=3, damaged=damaged,
        created="2026-11-23T06:00:00Z", host="kvm1",
    )  # fmt: skip
    return Past(record, NOW)


@given(ARCS, st.lists(ARCS, max_size=6))
def test_damage_stands_until_every_part_of_its_arc_was_read_again(
    first: tuple[int, int], later: list[tuple[int, int]]
) -> None:
    def parts(arc: tuple[int, int]) -> set[int]:
        return {(arc[0] + step) % 16 for step in range(arc[1])}

    read_again = set().union(*map(parts, later))
    rows = list(_checks(History((past(*first, damaged=1), *(past(*arc) for arc in later)), ())))
    assert rows[0].stands == (not parts(first) <= read_again)
    assert not any(row.stands for row in rows[1:])


def test_what_is_damaged_still_is_told_by_the_run_that_read_it_last() -> None:
    rows = list(_checks(History((past(0, 8, 2), past(0, 8, 1)), ())))
    assert [row.stands for row in rows] == [False, True]
    assert rows[0].share == 0.5


# -- what it costs -------------------------------------------------------------------------------

PAGE = 1000
"""How many names a store tells in one answer, as S3 does."""


class CountedStore(MemoryStore):
    """``requests``: by their kind, lists by their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.requests["get"] += 1
        return super().get(name, offset=offset, length=length)

    def get_tail(self, name: str, length: int) -> bytes:
        self.requests["get"] += 1
        return super().get_tail(name, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        infos = list(super().list(prefix))
        self.requests["list"] += 1 + len(infos) // PAGE
        return iter(infos)


class OneRepository(Wiring):
    def __init__(
        self, repository: Repository, hosts: Sequence[Host], state_dir: Path, config_text: bytes
    ) -> None:
        config = parse_config(config_text, "config.yaml", {})
        settings = dataclasses.replace(resolve(config, {}), state_dir=state_dir)
        super().__init__(
            settings, clock=FakeClock(), processes=SystemProcesses(), passphrase=lambda: b"x"
        )
        self._repository, self._all_hosts = repository, list(hosts)

    def hosts(self) -> list[Host]:
        return self._all_hosts


CONFIG = b"""
policies:
  - {name: nightly, vms: ["vm*"], schedule: "0 3 * * *", rpo: 26h}
"""


@pytest.fixture
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MEMORY_KIB", 64)
    monkeypatch.setattr(keys, "_MEMORY_BOUNDS", range(64, 1024 * 1024))


def uuid_of(vm: int) -> str:
    return f"00000000-0000-4000-8000-{vm:012d}"


def filled(repository: Repository, vms: int, points_each: int, drills_each: int) -> None:
    store, sealer = repository.store, repository._sealer
    now = FakeClock().now()
    for vm in range(vms):
        for back in range(points_each):
            moment = rfc3339(now - dt.timedelta(hours=12 * back + 1))
            manifest = Manifest(
                id=new_point_id(), vm=f"vm{vm}", vm_uuid=uuid_of(vm), created=moment,
                finished=moment, consistency="filesystem", engine="external", host="kvm1",
                drvm_version="0.1.0", stored_bytes=5_000_000,
                disks=(Disk("vda", 40 * GIB, "qcow2", "bitmap", 9, 9, 9),),
            )  # fmt: skip
            generation = new_generation()
            name = point_object(manifest.vm_uuid, manifest.id, generation)
            sealed = sealer.seal_object(b"point", name, manifest.encode())
            store.put_if_absent(name, sealed)
            points._decide(store, sealer, manifest.id, generation, "ok", sealed)
        for back in range(drills_each):
            drill = make_drill(
                id=f"{vm:08x}{back:08x}", vm=f"vm{vm}", vm_uuid=uuid_of(vm),
                started=now - dt.timedelta(days=7 * back), screenshot_png=PNG + bytes(5000),
            )  # fmt: skip
            repository.drills.put(drill.vm_uuid, drill.id, encode_drill(drill))
    store.put_if_absent("packs/" + "0" * 64, bytes(1000))


def wired(
    tmp_path: Path, vms: int, points_each: int, drills_each: int, config: bytes = CONFIG
) -> OneRepository:
    repository = Repository.create(CountedStore(), b"x", tmp_path / "cache")
    filled(repository, vms, points_each, drills_each)
    hosts = [
        cast(Host, cast(Any, FakeHost(*(FakeDomain(f"vm{n}", uuid_of(n), {}) for n in range(vms)))))
    ]
    return OneRepository(repository, hosts, tmp_path / "state", config)


def test_a_second_report_reads_nothing_again_but_what_is_new(
    tmp_path: Path, cheap_keys: None
) -> None:
    wiring = wired(tmp_path, 3, 4, 2)
    repository = wiring.repository()
    store = cast(CountedStore, repository.store)
    first = gather_report(wiring)
    assert len(first.drills) == 6 and all(drill.screenshot_png is None for drill in first.drills)
    assert [row.points for row in first.vms] == [4, 4, 4]
    assert first.vms[0].points_per_day[-3:] == (1, 2, 1)
    assert (first.storage[-1].stored_bytes, first.storage[-1].points) == (1000, 12)
    store.requests.clear()
    assert gather_report(wiring).drills == first.drills
    assert store.requests["get"] == 0 and store.requests["list"] <= 5
    new = make_drill(id="new", vm="vm1", vm_uuid=uuid_of(1))
    repository.drills.put(new.vm_uuid, new.id, encode_drill(new))
    store.requests.clear()
    assert len(gather_report(wiring).drills) == 7
    assert store.requests["get"] == 1


@pytest.mark.parametrize("own", [True, False])
def test_a_vm_of_no_host_here_is_gone_unless_another_hosts_points_keep_its_rpo(
    own: bool, tmp_path: Path, cheap_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiring = wired(tmp_path, 1, 2, 0)
    wiring._all_hosts = []
    monkeypatch.setattr(Repository, "is_own", lambda *_: own)
    report = gather_report(wiring)
    assert [(row.gone, row.elsewhere) for row in report.vms] == [(True, not own)]
    assert [concern.key for concern in attention(report)] == [f"gone {uuid_of(0)}"] * own


def test_a_page_has_the_pictures_that_it_shows(tmp_path: Path, cheap_keys: None) -> None:
    wiring = wired(tmp_path, 2, 1, 3)
    pictures = [d for d in gather_report(wiring, pictures=True).drills if d.screenshot_png]
    assert len(pictures) == 2
    assert drill_of(wiring, pictures[0].id) == pictures[0]
    assert drill_of(wiring, "none") is None


def test_what_was_removed_from_the_repository_is_not_remembered(
    tmp_path: Path, cheap_keys: None
) -> None:
    wiring = wired(tmp_path, 2, 2, 2)
    store = wiring.repository().store
    gather_report(wiring)
    for prefix in ("drills/", "points/"):
        gone = next(iter(store.list(prefix))).name
        store.delete(gone)
    after = gather_report(wiring)
    assert len(after.drills) == 3 and sum(row.points for row in after.vms) == 3


def test_a_kept_record_is_not_trusted_over_the_repository(tmp_path: Path, cheap_keys: None) -> None:
    wiring = wired(tmp_path, 1, 1, 2)
    repository = wiring.repository()

    def records() -> list[bytes]:
        return [repository.drills.read(info) for info in repository.drills.listed()]

    before = records()
    kept = sorted(path for path in (tmp_path / "cache").rglob("drills/*/*") if path.is_file())
    assert [stat.S_IMODE(path.stat().st_mode) for path in kept] == [0o600, 0o600]
    kept[0].write_bytes(kept[1].read_bytes())  # sealed, but under another name
    kept[1].write_bytes(b"torn")
    assert records() == before


TOGETHER = b"""
policies:
  - name: shop
    vms: ["vm*"]
    schedule: "0 3 * * *"
    group: true
    drill: {schedule: "0 5 * * 0", stages: [{vms: [vm0]}, {vms: [vm1]}]}
gc: {schedule: "0 4 * * *"}
"""
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def ended(job: str, vm_uuid: str = "", state: State = "failed", ago: dt.timedelta = HOUR) -> Run:
    started = FakeClock().now() - ago
    kind = cast(Kind, job.split(" ")[0])
    return Run("1", job, kind, "vm0, vm1", vm_uuid, "", None, started, started, state)


def test_failures_of_machines_that_go_together_are_told(tmp_path: Path, cheap_keys: None) -> None:
    wiring = wired(tmp_path, 2, 1, 0, TOGETHER)
    uri = wiring.hosts()[0].uri
    ours = [ended("backup shop", f"shop on {uri}"), ended("drill shop", "shop")]
    gone = [ended("backup shop", "shop on elsewhere"), ended("backup old", "old on kvm1")]
    assert [run.job for run in gather_report(wiring, [*ours, *gone]).runs] == [
        "backup shop",
        "drill shop",
    ]


@pytest.mark.parametrize(
    ("state", "ago", "told"),
    [
        ("done", HOUR, False),
        ("done", 3 * DAY, True),
        ("failed", 3 * DAY, False),  # told by that
        ("done", -400 * DAY, True),  # of a clock that was wrong
        ("stopped", HOUR, False),
        ("stopped", 3 * DAY, True),
    ],
)
def test_a_job_that_did_nothing_since_it_was_due_is_overdue(
    state: State, ago: dt.timedelta, told: bool, tmp_path: Path, cheap_keys: None
) -> None:
    wiring = wired(tmp_path, 1, 1, 0, TOGETHER)
    report = gather_report(wiring, [ended("gc", "", state, ago)])
    assert [c.key for c in attention(report) if c.key == "overdue gc"] == ["overdue gc"] * told


def test_locks_that_nobody_lengthened_when_they_were_due_are_told(
    tmp_path: Path, cheap_keys: None
) -> None:
    locked = b'repository: {url: "s3://b", object_lock: {mode: governance, days: 7}}'
    wiring = wired(tmp_path, 1, 1, 0, TOGETHER + locked)
    for ago, told in ((HOUR, False), (3 * DAY, True)):
        report = gather_report(wiring, [ended("locks", "", "done", ago)])
        assert ("overdue locks" in [concern.key for concern in attention(report)]) == told


@pytest.mark.long
def test_a_large_fleet_costs_a_report_each_minute_little(tmp_path: Path, cheap_keys: None) -> None:
    """200 VMs, 10,000 points, 1,000 drills: a second report takes under 1.5 CPU s, 30 requests."""
    wiring = wired(tmp_path, 200, 50, 5)
    store = cast(CountedStore, wiring.repository().store)
    costs = []
    for _ in range(3):
        store.requests.clear()
        began = time.process_time()
        report = gather_report(wiring)
        concerns = attention(report)
        costs.append((time.process_time() - began, dict(store.requests)))
    print(f"{len(concerns)} concerns; (CPU s, requests): {costs}")
    assert costs[-1][0] < 1.5 and costs[-1][1].get("get", 0) == 0
    assert costs[-1][1]["list"] <= 30
