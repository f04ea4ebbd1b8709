"""Agents that hang, lie, flood or die: each costs the label, never the guest, and no more than a
bounded time and memory of ours."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CleanupFailed
from drvm.core.process import Processes
from drvm.core.units import MIB
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.freeze import alone
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import recover
from tests.capturing import assert_back_on_its_disks, capture, make_parts
from tests.guests import Guest, MakeGuest
from tests.hostile_agent import hostile, is_writable

pytestmark = pytest.mark.guest

clock = SystemClock()


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("hostile")


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


def captured(guest: Guest, parts: Parts) -> tuple[str, float, tuple[str, ...]]:
    """The label, how long it took until the disks could be read, and the warnings."""
    start_s = clock.monotonic_s()
    with capture(parts, guest.name) as machine:
        return machine.consistency, clock.monotonic_s() - start_s, machine.warnings


HALF_WAY = "fsfreeze --freeze /data; touch /run/frozen; error 'vdc'"
RUBBISH = "head -c 3000 /dev/urandom >&3; say ''"
NO_NUMBER = """say '{"return": [[[{}]]]}'"""
HUGE_NUMBER = f"""say '{{"return": {"9" * 400}}}'"""
FLOOD = "head -c 100000000 /dev/zero | tr '\\0' x >&3"
ENDLESS = "while :; do printf '%65536s' x; done >&3"

SLOW = {
    "hangs": "freeze() { sleep 1000; }",
    "is late": "freeze() { sleep 3; fsfreeze --freeze /data; touch /run/frozen; say '{}'; }",
    "says rubbish": f"freeze() {{ {RUBBISH}; }}",
    "floods": f"freeze() {{ {FLOOD}; }}",
    "floods for ever": f"freeze() {{ {ENDLESS}; }}",
    "floods at once": f"ping() {{ {ENDLESS}; }}",
    "syncs never": "sync() { say '{\"return\": 1}'; }",
    "can not be thawed": "thaw() { error 'no'; }",
}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MIB


def assert_unharmed(guest: Guest, parts: Parts) -> None:
    """Asked of the real agent."""
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    assert is_writable(guest)
    assert_back_on_its_disks(guest, parts)


def test_one_that_fails_in_one_way_after_the_other_costs_the_label(
    guest: Guest, parts: Parts
) -> None:
    ways = (HALF_WAY, NO_NUMBER, HUGE_NUMBER)
    cases = "".join(f"{number}) {way} ;;\n" for number, way in enumerate(ways, 1))
    with hostile(guest, f"freeze() {{\nn=$((n+1))\ncase $n in\n{cases}esac\n}}"):
        for way in ways:
            label, took_s, warnings = captured(guest, parts)
            assert (label, took_s < 20) == ("crash", True), way
            assert any("only crash-consistent" in words for words in warnings)
    assert_unharmed(guest, parts)


@pytest.mark.long
@pytest.mark.parametrize("tricks", SLOW.values(), ids=SLOW.keys())
def test_one_that_takes_time_or_memory_costs_the_label(
    guest: Guest, parts: Parts, tricks: str
) -> None:
    before_mib = peak_mib()
    with hostile(guest, tricks, limit_s=30):
        try:
            label, took_s, warnings = captured(guest, parts)
        except CleanupFailed:
            assert "thaw" in tricks  # said loudly, and left to the watchdog and to recovery
            label, took_s, warnings = "crash", 0.0, ("only crash-consistent",)
    assert label == "crash"
    assert any("only crash-consistent" in words for words in warnings)
    assert took_s < 25
    assert peak_mib() - before_mib < 64
    if "thaw" in tricks:
        assert [done.problem for done in recover(parts, guest.name)] in ([], [""])
    assert_unharmed(guest, parts)


@pytest.mark.long
@pytest.mark.parametrize(
    "tricks",
    [
        "freeze() { say '{\"return\": 0}'; }",
        "freeze() { say '{\"return\": 3}'; }",
        f"info() {{ {FLOOD}; }}",
        "info() { sleep 1000; }",
        f'info() {{ say \'{{"return": {{"pretty-name": "{"x" * 9000}"}}}}\'; }}',
    ],
    ids=["freezes nothing", "lies", "floods later", "hangs later", "has a long name"],
)
def test_one_that_lies_or_says_too_much_is_believed_within_bounds(
    guest: Guest, parts: Parts, tricks: str
) -> None:
    """In libvirtd's one call nobody hears how many file systems its agent froze."""
    before_mib = peak_mib()
    with hostile(guest, tricks, limit_s=30):
        label, took_s, _ = captured(guest, parts)
    assert label == "filesystem"
    assert took_s < 25
    assert peak_mib() - before_mib < 64
    assert_unharmed(guest, parts)


@pytest.mark.long
def test_a_real_agent_that_is_killed_while_the_guest_is_frozen_does_not_keep_it_so(
    guest: Guest, parts: Parts
) -> None:
    domain = parts.host.domain(guest.name)
    request = CaptureRequest(guest.name, "0" * 16, freeze_timeout_s=5)
    guest.run("(sleep 1.5; killall -9 qemu-ga) >/dev/null 2>&1 &")
    with parts.watchdog(domain.uuid, 5) as dog:
        alone(
            domain,
            request,
            clock,
            dog,
            take=lambda quiesce: clock.sleep(3),
            was_taken=None,
            freezing=lambda tried: None,
        )
    guest.wait_for_agent(30)
    deadline_s = clock.monotonic_s() + 30
    while guest.agent("guest-fsfreeze-status") != "thawed":
        assert clock.monotonic_s() < deadline_s, "the guest stays frozen"
        clock.sleep(0.1)
    assert is_writable(guest)
