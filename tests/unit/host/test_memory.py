"""What a new machine can have of a host's memory, by what libvirt tells of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.core.errors import HostError, HostUnreachable
from drvm.host.libvirt_host import LibvirtHost

MIB_KIB = 1024
MEMORY = {
    "total": 64 * MIB_KIB,
    "free": 8 * MIB_KIB,
    "buffers": 2 * MIB_KIB,
    "cached": 40 * MIB_KIB,
}


def host_that_tells(memory: dict[str, int], *resident_kib: int | None) -> LibvirtHost:
    machines = [(None, {} if kib is None else {"balloon.rss": kib}) for kib in resident_kib]
    connection = SimpleNamespace(
        getMemoryStats=lambda _cell: memory, getAllDomainStats=lambda *_: machines
    )

    def call(work: Callable[[Any], Any], *, repeatable: bool) -> Any:
        return work(connection)

    host = LibvirtHost("qemu+ssh://spare/system")
    fake: Any = SimpleNamespace(call=call)
    host._connection = fake
    return host


@pytest.mark.parametrize(
    ("resident_kib", "left_mib"),
    [
        ((), 50),
        ((4 * MIB_KIB, None), 50),
        ((30 * MIB_KIB, 10 * MIB_KIB), 24),  # of it 26 MiB is shared, and so counted as cached
        ((80 * MIB_KIB,), 0),
    ],
)
def test_caches_can_be_had_but_not_what_other_machines_hold(
    resident_kib: tuple[int | None, ...], left_mib: int
) -> None:
    assert host_that_tells(MEMORY, *resident_kib).available_memory_bytes() == left_mib << 20


def test_a_host_that_does_not_say_is_not_believed_to_have_none() -> None:
    assert host_that_tells({}).available_memory_bytes() is None


@pytest.mark.parametrize("error", [HostError, HostUnreachable])
def test_a_libvirt_that_can_not_tell_is_no_error_and_one_that_is_away_is(
    error: type[HostError],
) -> None:
    def call(work: Callable[[Any], Any], *, repeatable: bool) -> Any:
        raise error("no")

    host = LibvirtHost("qemu+ssh://spare/system")
    fake: Any = SimpleNamespace(call=call)
    host._connection = fake
    if error is HostError:
        assert host.available_memory_bytes() is None
        return
    with pytest.raises(HostUnreachable):
        host.available_memory_bytes()
