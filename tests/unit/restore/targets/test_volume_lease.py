"""Half-filled volumes are known by their lease; whoever clears one away takes from no machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import HostError, HostUnreachable, RestoreError
from drvm.core.progress import no_trace
from drvm.restore.targets import volume_lease
from drvm.restore.targets.volume_lease import (
    DEAD_AFTER_S,
    HeldLease,
    held,
    lease_name,
    lease_token,
    new_token,
    on_host,
    over_name,
    owner_token,
    volume_name,
)
from drvm.restore.targets.volume_leftovers import FoundLease, LeaseObserver, clear, cleared
from drvm.snapshot.locks import try_lock
from tests.fakes.clock import FakeClock
from tests.fakes.memory_storage import MemoryStorage

POOLS = ("default",)
TOKEN = "0123456789ab"
OTHER = "ba9876543210"


@dataclass
class Machine:
    definition: str

    def xml(self, *, inactive: bool = False) -> str:
        return self.definition


@dataclass
class TwoHost:
    """A host with storage and machines."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    machines: list[Machine] = field(default_factory=list)
    name: str = "kvm1"

    def hostname(self) -> str:
        return self.name

    def domains(self) -> list[Machine]:
        return self.machines


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(volume_lease, "shared_directory", lambda: tmp_path / "run")
    return tmp_path / "run"


def crashed(host: Any, token: str = TOKEN, names: tuple[str, ...] = ("vda",)) -> list[str]:
    """What a restore leaves that is killed, on another machine than this one."""
    made = [volume_name("web1", name, token, "qcow2") for name in names]
    for name in (lease_name(token), *made):
        host.storage.create("default", name, 512)
    return made


def names(host: Any) -> frozenset[str]:
    return frozenset(host.storage.names("default"))


def test_names_tell_to_which_restore_a_volume_belongs() -> None:
    token = new_token()
    name = volume_name("we b/../1@ü" * 40, "vda", token, "qcow2")
    assert owner_token(name) == token and "/" not in name and len(name) < 128
    assert lease_token(lease_name(token)) == lease_token(over_name(token)) == token
    for foreign in ("web1-vda.qcow2", f"web1-vda-{token}.iso", f"{token}.raw", lease_name(token)):
        assert owner_token(foreign) is None
    for foreign in (name, "drvm-restore-.lease", f"drvm-restore-{token}.leases"):
        assert lease_token(foreign) is None


def test_a_lease_lies_there_while_it_is_held_and_no_longer(run_directory: Path) -> None:
    host: Any = TwoHost()
    with held(host.storage, POOLS, TOKEN, "restore of web1", no_trace) as lease:
        assert names(host) == {lease_name(TOKEN)}
        lease.check()
        (found,) = LeaseObserver(host, FakeClock()).look(POOLS)
        assert not found.dead and "restore of web1, beat 0 in pool default" in found.words
    assert names(host) == frozenset()
    assert list(run_directory.iterdir()) == []


def test_a_lease_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_lease, "BEAT_S", 0.01)
    host: Any = TwoHost()
    written: list[str] = []
    host.storage.before = lambda *what: written.append(what[0])
    with held(host.storage, POOLS, TOKEN, "restore", no_trace):
        while written.count("upload") < 4:
            pass
    assert b"beat" not in bytes(host.storage.pools["default"].get(lease_name(TOKEN), b""))


@pytest.mark.parametrize("error", [KeyError("mine"), HostUnreachable("gone")])
def test_an_error_gives_the_lease_back_unless_nobody_knows_what_there_is(error) -> None:
    host: Any = TwoHost()
    with pytest.raises(type(error)), held(host.storage, POOLS, TOKEN, "", no_trace):
        raise error
    left = isinstance(error, HostUnreachable)
    assert names(host) == ({lease_name(TOKEN)} if left else frozenset())
    if left:
        (found,) = LeaseObserver(host, FakeClock()).look(POOLS)
        assert found.dead, "its holder was here, and has ended"


def test_a_holder_of_this_machine_is_dead_when_its_lock_is_free(run_directory: Path) -> None:
    host: Any = TwoHost()
    crashed(host)
    lock = try_lock(run_directory / f"restore-{TOKEN}.lock")
    assert lock is not None
    observer = LeaseObserver(host, FakeClock())
    assert [lease.dead for lease in observer.look(POOLS)] == [False]
    os.close(lock)
    (found,) = observer.look(POOLS)
    assert found.dead
    clear(host, found)
    assert names(host) == frozenset() and list(run_directory.iterdir()) == []


def test_a_holder_elsewhere_is_dead_when_its_lease_stays_the_same_for_long() -> None:
    host: Any = TwoHost()
    crashed(host)
    clock = FakeClock()
    observer = LeaseObserver(host, clock)
    assert [lease.dead for lease in observer.look(POOLS)] == [False]
    clock.sleep(DEAD_AFTER_S - 1)
    host.storage.upload("default", lease_name(TOKEN), 512, [b"beat 1".ljust(512)])
    assert [lease.dead for lease in observer.look(POOLS)] == [False]
    clock.sleep(DEAD_AFTER_S - 1)
    assert [lease.dead for lease in observer.look(POOLS)] == [False]
    clock.sleep(1)
    assert [lease.dead for lease in observer.look(POOLS)] == [True]


def test_what_another_host_restores_into_a_pool_of_both_is_its_own_to_clear() -> None:
    """Its machines are not seen from here: one of them may have the volumes."""
    storage, clock = MemoryStorage(), FakeClock()
    here: Any = TwoHost(storage)
    there: Any = TwoHost(storage, name="kvm2")
    mine = crashed(there)
    about = f"{on_host(there.hostname())}restore of web1"
    storage.upload("default", lease_name(TOKEN), 512, [about.encode().ljust(512)])
    there.machines.append(Machine(mine[0]))
    began_s = clock.monotonic_s()
    (found,) = LeaseObserver(here, clock).wait(POOLS)
    assert not found.dead and "kvm2" in found.words
    assert clock.monotonic_s() - began_s < DEAD_AFTER_S / 2, "nothing would come of waiting"
    with cleared(here, POOLS, clock):
        clock.sleep(DEAD_AFTER_S)
    assert mine[0] in names(here) and lease_name(TOKEN) in names(here)
    (found,) = LeaseObserver(there, clock).wait(POOLS)
    assert found.dead and clear(there, found) == ()
    assert names(here) == {mine[0]}


def test_waiting_ends_when_the_dead_are_known() -> None:
    host: Any = TwoHost()
    crashed(host)
    clock = FakeClock()
    (found,) = LeaseObserver(host, clock).wait(POOLS)
    assert found.dead
    assert LeaseObserver(host, clock).wait(()) == ()


def test_waiting_ends_when_all_are_seen_to_live() -> None:
    host: Any = TwoHost()
    crashed(host)
    clock = FakeClock()
    beats = iter(range(1000))

    def before(operation: str, *_: str) -> None:
        if operation == "names":
            data = host.storage.pools["default"][lease_name(TOKEN)]
            data[:8] = b"%08d" % next(beats)

    host.storage.before = before
    began_s = clock.monotonic_s()
    assert [lease.dead for lease in LeaseObserver(host, clock).wait(POOLS)] == [False]
    assert clock.monotonic_s() - began_s < DEAD_AFTER_S / 2


def test_what_is_cleared_away_is_its_own_and_no_machine_names_it() -> None:
    host: Any = TwoHost()
    mine = crashed(host, names=("vda", "vdb"))
    others = crashed(host, OTHER)
    host.storage.create("default", "somebody.raw", 512)
    host.machines.append(Machine(f"<domain><source file='/elsewhere/{mine[1]}'/></domain>"))
    assert clear(host, FoundLease("default", TOKEN, b"", ())) == (mine[0],)
    assert names(host) == {mine[1], *others, lease_name(OTHER), "somebody.raw"}


@pytest.mark.parametrize("step", range(7))
def test_clearing_may_end_anywhere_and_is_finished_by_the_next(step: int) -> None:
    host: Any = TwoHost()
    crashed(host, names=("vda", "vdb"))
    calls = 0

    def before(*_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise KeyboardInterrupt

    host.storage.before = before
    with pytest.raises(KeyboardInterrupt):
        clear(host, FoundLease("default", TOKEN, b"", ()))
    host.storage.before = lambda *_: None
    observer = LeaseObserver(host, FakeClock())
    for found in observer.look(POOLS):
        clear(host, found)
    assert names(host) == frozenset()


def test_a_holder_that_was_cleared_away_is_told() -> None:
    host: Any = TwoHost()
    lease = HeldLease(host.storage, POOLS, TOKEN)
    with pytest.raises(RestoreError, match="taken for dead"):
        lease.check()
    crashed(host)
    lease.check()
    host.storage.create("default", over_name(TOKEN), 512)
    with pytest.raises(RestoreError, match="taken for dead"):
        lease.check()


@pytest.mark.parametrize("defined_before", range(9))
def test_a_machine_is_whole_or_its_holder_learns_whenever_it_defines(defined_before: int) -> None:
    """At each step of whoever clears away, the holder may define its machine and look."""
    host: Any = TwoHost()
    mine = crashed(host, names=("vda", "vdb"))
    lease = HeldLease(host.storage, POOLS, TOKEN)
    calls, learned = 0, False

    def define() -> None:
        nonlocal learned
        host.storage.before = lambda *_: None
        host.machines.append(Machine("".join(mine)))
        try:
            lease.check()
        except RestoreError:
            learned = True

    def before(*_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == defined_before + 1:
            define()

    host.storage.before = before
    clear(host, FoundLease("default", TOKEN, b"", ()))
    if not host.machines:
        define()
    assert learned or set(mine) <= names(host)


def test_a_restore_clears_what_is_dead_before_and_behind() -> None:
    host: Any = TwoHost()
    clock = FakeClock()
    crashed(host)
    with cleared(host, POOLS, clock):
        assert lease_name(TOKEN) in names(host), "it may live, elsewhere"
        clock.sleep(DEAD_AFTER_S)
    assert names(host) == frozenset()


def test_what_can_not_be_cleared_does_not_stop_a_restore() -> None:
    def before(*_: str) -> None:
        raise HostError("permission denied")

    host: Any = TwoHost()
    host.storage.before = before
    with cleared(host, POOLS, FakeClock()):
        pass
