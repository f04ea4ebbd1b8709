"""The VMs of all hosts beside their points and policies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from drvm.config.policies import PolicyConfig
from drvm.core.clock import parse_rfc3339
from drvm.core.errors import CaptureError, HostError, UnknownVm
from drvm.core.threads import mapped
from drvm.drill.place import is_drill_name
from drvm.host.model import Domain, DomainState, Host
from drvm.repository.manifest import Manifest
from drvm.repository.points import Point
from drvm.schedule.rpo import Rpo, rpo_state
from drvm.snapshot.choose import Decision, decide
from drvm.snapshot.imagefiles import ImageFilesEngine
from drvm.wiring.assembly import Wiring
from drvm.wiring.selection import (
    Choice,
    PointPolicies,
    choice_of_domain,
    names_suffice,
    policy_of_domain,
)
from drvm.wiring.whereabouts import NOWHERE, Whereabouts

UNREACHABLE = "unreachable"
"""The state of a VM that a host which does not answer may have."""
_ON = (DomainState.RUNNING.value, DomainState.PAUSED.value)


@dataclass(frozen=True, slots=True)
class Seen:
    """A machine, as a look at its host found it. ``engine`` is ``None`` for one that can't be
    captured now, and where nobody asked."""

    name: str
    uuid: str
    host: str
    state: str
    choice: Choice
    engine: Decision | None = None

    @property
    def is_on(self) -> bool:
        return self.state in _ON


@dataclass(frozen=True, slots=True)
class Look:
    """``away``: the hosts that did not answer, with what was wrong."""

    seen: tuple[Seen, ...]
    away: tuple[tuple[str, HostError], ...] = ()

    @property
    def twins(self) -> frozenset[str]:
        """The UUIDs that several hosts have."""
        return frozenset(uuid for uuid, found in self.by_uuid.items() if len(found) > 1)

    @property
    def by_uuid(self) -> dict[str, list[Choice]]:
        found: dict[str, list[Choice]] = {}
        for one in self.seen:
            found.setdefault(one.uuid, []).append(one.choice)
        return found


@dataclass(frozen=True, slots=True)
class FleetVm:
    """``host`` and ``state`` are ``None`` for a VM that is on none of the hosts any more; where one
    of them does not answer, its state is ``UNREACHABLE``. ``engine`` is ``None`` for one that can't
    be captured now. ``doubt``: why nobody can tell the policy. ``held``: why what a host has under
    its UUID is not taken for it, which counts as not seen then."""

    name: str
    uuid: str
    host: str | None
    state: str | None
    engine: Decision | None
    policy: str | None
    doubt: str
    points: int
    last: Point | None
    rpo: Rpo
    held: str = ""

    @property
    def is_on(self) -> bool:
        return self.state in _ON

    @property
    def last_created(self) -> datetime | None:
        """The instant that its last good point shows."""
        return parse_rfc3339(self.last.manifest.created) if self.last is not None else None


@dataclass(frozen=True, slots=True)
class Fleet:
    """``vms``: by name."""

    vms: tuple[FleetVm, ...]
    away: tuple[tuple[str, HostError], ...]


def machines(hosts: Iterable[Host]) -> Iterator[tuple[Host, Domain]]:
    """The machines that can be protected: the hosts' own, without those of drills."""
    for host in hosts:
        for domain in host.domains():
            if not is_drill_name(domain.name):
                yield host, domain


def look_at(
    host: Host, policies: Sequence[PolicyConfig], *, engines: bool = False
) -> tuple[Seen, ...]:
    """The machines of one host. Raises ``HostUnreachable`` and ``HostError``."""
    found = []
    for _, domain in machines([host]):
        with contextlib.suppress(UnknownVm):  # gone since the listing
            choice = choice_of_domain(policies, host.uri, domain)
            engine = engine_of(domain, choice.policy) if engines else None
            state = domain.state().value
            found.append(Seen(domain.name, domain.uuid, host.uri, state, choice, engine))
    return tuple(found)


def look_at_all(
    hosts: Sequence[Host], policies: Sequence[PolicyConfig], *, engines: bool = False
) -> Look:
    """All hosts at once: as long as the slowest takes, however many don't answer."""

    def look(host: Host) -> tuple[Seen, ...] | HostError:
        try:
            return look_at(host, policies, engines=engines)
        except HostError as error:
            return error

    found = list(mapped(look, hosts)) if len(hosts) > 1 else [look(host) for host in hosts]
    pairs = list(zip(hosts, found, strict=True))
    return Look(
        tuple(one for _, seen in pairs if not isinstance(seen, HostError) for one in seen),
        tuple((host.uri, error) for host, error in pairs if isinstance(error, HostError)),
    )


def point_policies(wiring: Wiring, look: Look) -> PointPolicies:
    away = [uri for uri, _ in look.away]
    repository = wiring.repository()
    return PointPolicies(wiring.settings.policies, look.by_uuid, away, repository.blob)


def fleet_of(wiring: Wiring, points: Sequence[Point], *, engines: bool = False) -> Fleet:
    """``points`` are the good ones, oldest first. Asks all hosts; one that does not answer hides
    nobody else's VMs."""
    look = look_at_all(wiring.hosts(), wiring.settings.policies, engines=engines)
    now, known = wiring.clock.now(), wiring.whereabouts()
    return Fleet(survey(look, points, point_policies(wiring, look), now, known), look.away)


def survey(
    look: Look,
    points: Sequence[Point],
    policies: PointPolicies,
    now: datetime,
    known: Whereabouts = NOWHERE,
) -> tuple[FleetVm, ...]:
    """By name. A VM is followed by its UUID: it is where it runs, else where it was last seen."""
    by_uuid: dict[str, list[Point]] = {}
    for point in points:
        by_uuid.setdefault(point.manifest.vm_uuid, []).append(point)
    twins: dict[str, list[Seen]] = {}
    for seen in look.seen:  # a migration may leave it defined, and off, where it came from
        twins.setdefault(seen.uuid, []).append(seen)
    away = [uri for uri, _ in look.away]
    fleet = []
    for uuid in twins.keys() | by_uuid.keys():
        mine = by_uuid.get(uuid, [])
        last = mine[-1] if mine else None
        found, held = _one_of(twins.get(uuid, ()), away, last, known)
        choice = found.choice if found is not None else policies.of(mine[-1].manifest)
        name = found.name if found is not None else mine[-1].manifest.vm
        if held:
            found = None
        policy = choice.policy
        created = parse_rfc3339(last.manifest.created) if last is not None else None
        fleet.append(
            FleetVm(
                name=name,
                uuid=uuid,
                host=found.host if found is not None else None,
                state=found.state if found is not None else _absent(look, last),
                engine=found.engine if found is not None else None,
                policy=policy.name if policy is not None else None,
                doubt=choice.doubt,
                points=len(mine),
                last=last,
                rpo=rpo_state(created, policy.rpo_s if policy is not None else None, now),
                held=held,
            )
        )
    return tuple(sorted(fleet, key=lambda vm: (vm.name, vm.uuid)))


def _one_of(
    twins: Sequence[Seen], away: Sequence[str], last: Point | None, known: Whereabouts
) -> tuple[Seen | None, str]:
    """The machine among those that have its UUID; and why it is held, or nothing."""
    if not twins:
        return None, ""
    found = min(twins, key=lambda one: (not one.is_on, not known.last_seen(one.uuid, one.host)))
    if found.is_on:
        return found, ""
    newest = last.manifest if last is not None else None
    return found, known.held(found.uuid, found.host, away, lambda: newest)


def _absent(look: Look, last: Point | None) -> str | None:
    """Image files never were on a host."""
    is_machine = last is None or last.manifest.engine != ImageFilesEngine.name
    return UNREACHABLE if look.away and is_machine else None


def policy_of_vm(wiring: Wiring, vm: str, uri: str | None = None) -> PolicyConfig | None:
    """See ``Wiring.find``. Raises ``UnknownVm``, and the errors of the host that has it."""
    host, domain = wiring.find(vm, uri)
    return policy_of_domain(wiring.settings.policies, host.uri, domain)


def covered(wiring: Wiring, policy: PolicyConfig) -> list[str]:
    """The names of the VMs whose policy it is, in its order. Raises where a host is away."""
    found = machines(wiring.hosts())
    policies = wiring.settings.policies
    names = (d.name for h, d in found if policy_of_domain(policies, h.uri, d) == policy)
    return sorted(names, key=lambda name: (policy.rank(name), name))


def policy_of_point(wiring: Wiring, manifest: Manifest) -> PolicyConfig | None:
    """``None`` also where nobody can tell. Hosts are only asked where names don't suffice."""
    policies, seen, away = wiring.settings.policies, [], []
    for host in () if names_suffice(policies) else wiring.hosts():
        try:
            domain = host.find_domain(manifest.vm_uuid)
            if domain is not None:
                choice = choice_of_domain(policies, host.uri, domain)
                seen.append(Seen(domain.name, domain.uuid, host.uri, "", choice))
        except HostError as error:
            away.append((host.uri, error))
    return point_policies(wiring, Look(tuple(seen), tuple(away))).of(manifest).policy


def engine_of(domain: Domain, policy: PolicyConfig | None) -> Decision | None:
    """What would capture the VM now, and why; ``None`` where nothing could. Raises ``UnknownVm``
    and the host's errors."""
    try:
        return decide(domain, policy.engine if policy is not None else "auto")
    except CaptureError:
        return None
