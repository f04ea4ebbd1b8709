"""Everything that stands in the way of a restore, before its first byte is written."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.host.model import HostCapabilities, Pool
from drvm.restore.machine.definition import Definition
from drvm.restore.machine.nics import NetworkUse
from drvm.restore.machine.source import parse
from drvm.restore.targets.placing import VOLUME_POOLS

_SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class ExistingDomain:
    """A VM of the target host. MACs are lower case. ``saved``: its memory lies on disk."""

    name: str
    uuid: str
    macs: frozenset[str]
    running: bool
    saved: bool = False


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """The target as it is now. ``bridges`` is ``None`` where libvirt does not say."""

    uri: str
    domains: tuple[ExistingDomain, ...]
    networks: frozenset[str]
    pools: Mapping[str, Pool]
    capabilities: HostCapabilities
    bridges: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a restore needs of its target.

    ``replace``: it takes the place of the VM with its UUID. ``room``: pool -> what the images there
    may take in the end, in bytes (raw ones count in full); none where they go elsewhere.
    ``transient_network``: a network that the drill makes itself.
    """

    name: str
    uuid: str
    macs: frozenset[str]
    replace: bool
    arch: str
    machine: str
    virt_type: str
    firmware: str
    networks: tuple[NetworkUse, ...] = ()
    room: Mapping[str, int] = field(default_factory=dict)
    transient_network: str | None = None


def needs(
    definition: Definition,
    *,
    replace: bool,
    room: Mapping[str, int] | None = None,
    transient_network: str | None = None,
) -> Needs:
    """What ``definition``, rebuilt by us, asks of the target."""
    domain = parse(definition.xml)
    kind = domain.find("os/type")
    kind = ET.Element("type") if kind is None else kind
    system = domain.find("os")
    return Needs(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        macs=frozenset(mac.get("address", "") for mac in domain.iterfind("devices/interface/mac")),
        replace=replace,
        arch=kind.get("arch", ""),
        machine=kind.get("machine", ""),
        virt_type=domain.get("type", ""),
        firmware="bios" if system is None else system.get("firmware", "bios"),
        networks=definition.networks,
        room=room or {},
        transient_network=transient_network,
    )


def problems(facts: TargetFacts, need: Needs) -> tuple[str, ...]:
    """All of them at once, a line each, with the switch that resolves it. Empty: go ahead."""
    return tuple(
        printable(line, 600)
        for check in (_identity, _macs, _networks, _pools, _machine)
        for line in check(facts, need)
    )


def _identity(facts: TargetFacts, need: Needs) -> Iterator[str]:
    named = [domain for domain in facts.domains if domain.name == need.name]
    owner = [domain for domain in facts.domains if domain.uuid == need.uuid]
    if not need.replace:
        if named:
            yield (
                f"a VM named {need.name!r} exists on {facts.uri}: drvm clone POINT NAME makes a "
                "copy under another name, drvm restore --replace takes its place"
            )
        for domain in owner:
            if domain not in named:
                yield (
                    f"the VM {domain.name!r} on {facts.uri} has the UUID {need.uuid}: use --clone "
                    "for a new identity"
                )
        return
    for domain in named:
        if domain.uuid != need.uuid:
            yield (
                f"the VM named {need.name!r} on {facts.uri} is another one (its UUID is "
                f"{domain.uuid}): use --clone --name NAME"
            )
    for domain in owner:
        if domain.name != need.name:
            yield (
                f"the VM to replace is called {domain.name!r} on {facts.uri} now: use "
                f"--name {domain.name}, or --clone for a new identity"
            )
        if domain.running:
            yield (
                f"the VM {domain.name!r} is running on {facts.uri}: shut it down before "
                "--replace, or use --clone for a copy beside it"
            )
        elif domain.saved:
            yield (
                f"the memory of the VM {domain.name!r} was saved to disk on {facts.uri}, and its "
                "next start would go on there, on its old disks: start it and shut it down, or "
                f"give the memory up (virsh managedsave-remove {domain.name})"
            )


def _macs(facts: TargetFacts, need: Needs) -> Iterator[str]:
    if need.transient_network is not None:
        return  # an isolated network of its own: nobody else is on the wire
    for domain in facts.domains:
        clash = sorted(domain.macs & need.macs)
        if clash and not (need.replace and domain.uuid == need.uuid):
            yield (
                f"the VM {domain.name!r} on {facts.uri} has the MAC address "
                f"{', '.join(clash[:_SHOWN_NAMES])}: use --clone for new ones"
            )


def _networks(facts: TargetFacts, need: Needs) -> Iterator[str]:
    for use in need.networks:
        if use.kind == "network":
            there: frozenset[str] | None = facts.networks
        else:
            there = facts.bridges
        if use.name == need.transient_network or there is None or use.name in there:
            continue
        network = use.kind == "network"
        state = "is not active" if network else "does not exist"
        start = f"start it (virsh net-start {use.name}), or " if network else ""
        yield (
            f"{use.kind} {use.name!r} {state} on {facts.uri}: {start}use --map-network "
            f"{use.origin}=NAME ({_choices(facts)})"
        )


def _choices(facts: TargetFacts) -> str:
    names = sorted(facts.networks) + [f"bridge:{name}" for name in sorted(facts.bridges or ())]
    return listed(names)


def listed(names: Sequence[str]) -> str:
    """``there are: a, b, and 7 more``."""
    if not names:
        return "there are none"
    more = f", and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"there are: {', '.join(names[:_SHOWN_NAMES])}{more}"


def _pools(facts: TargetFacts, need: Needs) -> Iterator[str]:
    for name, need_bytes in need.room.items():
        yield from _pool(facts, name, need_bytes)


def _pool(facts: TargetFacts, name: str, need_bytes: int) -> Iterator[str]:
    pool = facts.pools.get(name)
    usable = sorted(
        name for name, other in facts.pools.items() if other.active and other.kind in VOLUME_POOLS
    )
    others = f"use --pool NAME, or --map-pool OLD=NAME for some disks ({listed(usable)})"
    if pool is None:
        make = "" if usable else f"; virsh pool-create-as {name} dir --target DIR makes one"
        yield f"pool {name!r} does not exist on {facts.uri}: {others}{make}"
    elif pool.kind not in VOLUME_POOLS:
        yield (
            f"pool {pool.name!r} is of the kind {pool.kind}, where drvm makes no volumes: {others}"
        )
    elif not pool.active:
        yield f"pool {pool.name!r} is not active on {facts.uri}: start it, or {others}"
    elif pool.available_bytes < need_bytes:
        yield (
            f"pool {pool.name!r} has {format_bytes(pool.available_bytes)} left and the restore "
            f"may take {format_bytes(need_bytes)} there: {others}, or --disk to restore some disks "
            "only"
        )


def _machine(facts: TargetFacts, need: Needs) -> Iterator[str]:
    there = facts.capabilities
    if need.arch and need.arch != there.arch:
        yield (
            f"{facts.uri} is a {there.arch} host and the VM is for {need.arch}: use --to URI "
            "with another host"
        )
        return
    if need.virt_type not in there.virt_types:
        yield (
            f"{facts.uri} has no {need.virt_type}: use --virt-type "
            f"{' or '.join(sorted(there.virt_types)) or 'TYPE'}"
        )
    if need.machine and there.machines and need.machine not in there.machines:
        family = need.machine.rpartition("-")[0]
        alike = sorted(name for name in there.machines if family and name.startswith(family))
        yield (
            f"machine type {need.machine!r} does not exist on {facts.uri}: use --machine NAME "
            f"({listed(alike[::-1] or sorted(there.machines))})"
        )
    if need.firmware != "bios" and need.firmware not in there.firmwares:
        yield (
            f"{facts.uri} has no UEFI firmware: install OVMF there (Debian: apt install ovmf), or "
            "use --to URI with another host"
        )
