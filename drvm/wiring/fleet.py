"""The VMs of all hosts beside their points and policies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from drvm.config.policies import PolicyConfig
from drvm.core.clock import parse_rfc3339
from drvm.core.errors import CaptureError, UnknownVm
from drvm.drill.place import is_drill_name
from drvm.host.model import Domain, Host
from drvm.repository.points import Point
from drvm.schedule.rpo import Rpo, rpo_state
from drvm.snapshot.choose import Decision, decide


@dataclass(frozen=True, slots=True)
class FleetVm:
    """``host`` and ``state`` are ``None`` for a VM that is on none of the hosts any more, and
    ``engine`` is for one that can't be captured now."""

    name: str
    uuid: str
    host: str | None
    state: str | None
    engine: Decision | None
    policy: str | None
    points: int
    last: Point | None
    rpo: Rpo


def machines(hosts: Iterable[Host]) -> Iterator[tuple[Host, Domain]]:
    """The machines that can be protected: the hosts' own, without those of drills."""
    for host in hosts:
        for domain in host.domains():
            if not is_drill_name(domain.name):
                yield host, domain


def survey(
    hosts: Iterable[Host],
    points: Sequence[Point],
    policy_of: Callable[[str], PolicyConfig | None],
    now: datetime,
) -> list[FleetVm]:
    """Sorted by name. ``points`` are the good ones, oldest first; a VM is followed by its UUID.
    ``policy_of``: by the VM's name."""
    by_uuid: dict[str, list[Point]] = {}
    for point in points:
        by_uuid.setdefault(point.manifest.vm_uuid, []).append(point)
    there: dict[str, tuple[str, str, str, Decision | None]] = {}
    for host, domain in machines(hosts):
        with contextlib.suppress(UnknownVm):  # gone since the listing
            engine = engine_of(domain, policy_of(domain.name))
            there[domain.uuid] = (domain.name, host.uri, domain.state().value, engine)
    fleet = []
    for uuid in there.keys() | by_uuid.keys():
        mine = by_uuid.get(uuid, [])
        gone = (mine[-1].manifest.vm if mine else "", None, None, None)
        name, host_uri, state, engine = there.get(uuid, gone)
        policy = policy_of(name)
        last = mine[-1] if mine else None
        created = parse_rfc3339(last.manifest.created) if last is not None else None
        rpo = rpo_state(created, policy.rpo_s if policy is not None else None, now)
        fleet.append(
            FleetVm(
                name,
                uuid,
                host_uri,
                state,
                engine,
                policy.name if policy is not None else None,
                len(mine),
                last,
                rpo,
            )
        )
    return sorted(fleet, key=lambda vm: (vm.name, vm.uuid))


def engine_of(domain: Domain, policy: PolicyConfig | None) -> Decision | None:
    """What would capture the VM now, and why; ``None`` where nothing could. Raises ``UnknownVm``
    and the host's errors."""
    try:
        return decide(domain, policy.engine if policy is not None else "auto")
    except CaptureError:
        return None
