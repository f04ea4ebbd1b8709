"""A definition that a move left behind is not taken for the machine while its host is away."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, HostUnreachable, Interrupted
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.repository.points import Point
from drvm.wiring import rollbacks, whereabouts
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import UNREACHABLE, FleetVm, Look, Seen, survey
from drvm.wiring.selection import Choice, PointPolicies
from drvm.wiring.whereabouts import Whereabouts, read, remember
from tests.fakes.chain_host import FakeDomain, FakeHost
from tests.unit.wiring.test_selection import UUIDS, point

HERE, KVM1 = "qemu:///system", "qemu+ssh://kvm1/system"
NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
POLICIES = parse_config(b"policies: [{name: nightly, vms: ['*']}]", "c.yaml", {}).policies
AWAY = ((KVM1, HostUnreachable("no route")),)


def seen(host: str = HERE, state: str = "shutoff") -> Seen:
    return Seen("web1", UUIDS[0], host, state, Choice(POLICIES[0]))


def look(
    *found: Seen, away: Any = (), last: str = "", own: bool = True, points: tuple[Point, ...] = ()
) -> FleetVm:
    known = Whereabouts({UUIDS[0]: last} if last else {}, lambda _: own)
    at = Look(found, away)
    chosen = PointPolicies(POLICIES, at.by_uuid, [uri for uri, _ in away], lambda _: b"")
    (vm,) = survey(at, points, chosen, NOW, known)
    return vm


@pytest.mark.parametrize("points", [(), (point("web1", UUIDS[0]),)], ids=["new", "has a point"])
def test_a_machine_whose_host_is_away_is_not_its_twin_elsewhere_that_is_off(
    points: tuple[Point, ...],
) -> None:
    held = look(seen(), away=AWAY, last=KVM1, points=points)
    assert (held.host, held.state, held.policy) == (None, UNREACHABLE, "nightly")
    assert held.held.startswith(f"it is off on {HERE}, and was last seen on {KVM1}, which does not")


@pytest.mark.parametrize(
    ("found", "away", "last"),
    [
        (seen(state="running"), AWAY, KVM1),
        (seen(state="paused"), AWAY, KVM1),
        (seen(), AWAY, HERE),
        (seen(), AWAY, ""),
        (seen(), (), KVM1),
    ],
    ids=["it runs", "it is paused", "it is its place", "never seen", "all hosts answer"],
)
def test_it_is_taken_where_nothing_speaks_for_another_place(
    found: Seen, away: Any, last: str
) -> None:
    vm = look(found, away=away, last=last, points=(point("web1", UUIDS[0]),))
    assert (vm.host, vm.held) == (HERE, "")


def test_a_point_that_another_host_wrote_last_speaks_for_that_host_too() -> None:
    points = (point("web1", UUIDS[0]),)
    held = look(seen(), away=AWAY, own=False, points=points)
    assert held.host is None and "its newest point was written by" in held.held
    assert look(seen(), own=False, points=points).host == HERE
    elsewhere = look(seen("qemu+ssh://kvm3/system"), away=AWAY, own=False, points=points)
    assert elsewhere.held == ""


def test_of_two_that_are_off_the_one_where_it_was_last_seen_is_the_machine() -> None:
    both = (seen(), seen(KVM1))
    assert look(*both).host == HERE
    assert look(*both, last=KVM1).host == KVM1


def test_what_was_seen_is_kept_and_what_is_gone_forgotten(tmp_path: Path) -> None:
    vm = look(seen(KVM1, "running"))
    remember(tmp_path, read(tmp_path), [vm], away=False)
    assert read(tmp_path) == {UUIDS[0]: KVM1}
    written = (tmp_path / whereabouts.FILE).stat().st_ino
    held = look(seen(), away=AWAY, last=KVM1)
    remember(tmp_path, read(tmp_path), [held], away=True)
    remember(tmp_path, read(tmp_path), [], away=True)
    assert read(tmp_path) == {UUIDS[0]: KVM1}
    assert (tmp_path / whereabouts.FILE).stat().st_ino == written, "nothing new, nothing written"
    remember(tmp_path, read(tmp_path), [], away=False)
    assert read(tmp_path) == {}


def test_a_guess_between_two_that_are_off_is_not_remembered(tmp_path: Path) -> None:
    guessed = look(seen(), seen(KVM1))
    remember(tmp_path, {}, [guessed], away=False, twins={UUIDS[0]})
    assert read(tmp_path) == {}
    runs = look(seen(), seen(KVM1, "running"))
    remember(tmp_path, {}, [runs], away=False, twins={UUIDS[0]})
    assert read(tmp_path) == {UUIDS[0]: KVM1}
    remember(tmp_path, read(tmp_path), [guessed], away=False, twins={UUIDS[0]})
    assert read(tmp_path) == {UUIDS[0]: KVM1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"[]", b" " * (whereabouts.MAX_BYTES)])
def test_a_file_that_is_not_ours_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / whereabouts.FILE).write_bytes(content + b"\n")
    assert read(tmp_path) == {}


class Away(FakeHost):
    def find_domain(self, name_or_uuid: str) -> Any:
        raise HostUnreachable("no route")


class Wired(Wiring):
    """With hosts of its own."""

    def __init__(self, directory: Path, *hosts: FakeHost) -> None:
        settings = dataclasses.replace(
            resolve(None, {}),
            host_uris=tuple(host.uri for host in hosts),
            state_dir=directory,
        )
        super().__init__(
            settings, clock=SystemClock(), processes=SystemProcesses(), passphrase=lambda: b""
        )
        self._given = {host.uri: host for host in hosts}
        self.asked = 0

    def host(self, uri: str | None = None) -> Any:
        return self._given[uri or self.settings.host_uris[0]]

    def repository(self) -> Any:
        self.asked += 1
        return SimpleNamespace(newest_point=lambda *_: None, is_own=lambda _: True)


def host(uri: str, *domains: FakeDomain, kind: type[FakeHost] = FakeHost) -> FakeHost:
    made = kind(*domains)
    made.uri = uri
    return made


def test_a_backup_by_hand_takes_the_machine_where_it_runs(tmp_path: Path) -> None:
    stale = FakeDomain("web1", UUIDS[0], {}, running=False)
    other = FakeDomain("web1", UUIDS[1], {})  # a stranger of the same name
    moved = FakeDomain("web1-renamed", UUIDS[0], {})
    wiring = Wired(tmp_path, host(HERE, stale), host(KVM1, other, moved))
    assert cast(Any, wiring.find("web1")[1]) is moved
    assert wiring.find("web1", HERE)[1].uuid == UUIDS[0]
    moved.running = False
    assert cast(Any, wiring.find("web1")[1]) is stale
    (tmp_path / whereabouts.FILE).write_text(f'{{"{UUIDS[0]}": "{KVM1}"}}')
    assert cast(Any, wiring.find("web1")[1]) is moved


def test_a_backup_by_hand_of_a_twin_is_refused_while_the_host_of_the_machine_is_away(
    tmp_path: Path,
) -> None:
    stale = FakeDomain("web1", UUIDS[0], {}, running=False)
    wiring = Wired(tmp_path, host(HERE, stale), host(KVM1, kind=Away))
    assert cast(Any, wiring.find("web1")[1]) is stale and wiring.asked == 1
    (tmp_path / whereabouts.FILE).write_text(f'{{"{UUIDS[0]}": "{KVM1}"}}')
    with pytest.raises(CaptureError, match="web1 is held: it is off on") as raised:
        wiring.find("web1")
    assert "take that host out of hosts" in raised.value.hint
    stale.running = True
    assert cast(Any, wiring.find("web1")[1]) is stale


def test_a_twin_that_somebody_turns_back_in_place_has_its_safety_point_taken_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = FakeDomain("web1", UUIDS[0], {}, running=False)
    wiring = Wired(tmp_path, host(HERE, stale), host(KVM1, kind=Away))
    (tmp_path / whereabouts.FILE).write_text(f'{{"{UUIDS[0]}": "{KVM1}"}}')
    taken: list[object] = []

    def take(_wiring: Wiring, vm: str, *_: object, uri: str) -> Any:
        taken.append(cast(Any, wiring.find(vm, uri)[1]))
        raise Interrupted("enough")

    monkeypatch.setattr(rollbacks, "kept", lambda *_: contextlib.nullcontext(()))
    monkeypatch.setattr(rollbacks, "make_ready", lambda *_: None)
    monkeypatch.setattr(rollbacks, "take_point", take)
    plan = SimpleNamespace(manifest=None, vm_uuid=UUIDS[0], vm_name="web1", again=None, named={})
    with pytest.raises(Interrupted):
        rollbacks.in_place(wiring, cast(Any, plan), NoProgress(), safety=True)
    assert taken == [stale]
