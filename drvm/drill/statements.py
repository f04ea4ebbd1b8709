"""What a drill proves and what it does not, in words for an auditor. Honest before nice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from drvm.core.units import format_bytes
from drvm.drill.plan import DrillPlan
from drvm.drill.ways import needed

_MAX_LISTED = 20

_CONSISTENCY = {
    "crash": (
        "that no write was under way at the point's instant: it is crash-consistent, as after a "
        "power cut"
    ),
    "filesystem": (
        "that applications had written down what they held in memory: at the point's instant the "
        "file systems were frozen, applications were not asked"
    ),
}


def data_proven(plan: DrillPlan, written_bytes: int) -> str:
    count = len(plan.images)
    return (
        f"every stored block of {count} {'disk' if count == 1 else 'disks'} "
        f"({format_bytes(written_bytes)}) was read back, decrypted and matched its id"
    )


def started_proven(plan: DrillPlan) -> str:
    how = ", emulated instead of on KVM" if plan.emulated else ""
    return f"libvirt on {plan.host} accepted the rebuilt machine and started it{how}"


def not_proven(plan: DrillPlan) -> tuple[str, ...]:
    """At most ``2 * _MAX_LISTED`` and a few lines."""
    return tuple(_not_proven(plan))


def _not_proven(plan: DrillPlan) -> Iterator[str]:
    point = plan.request.point
    if point.consistency in _CONSISTENCY:
        yield _CONSISTENCY[point.consistency]
    if plan.network is not None:
        yield _network(reached="network" in needed(plan.request.checks))
    yield (
        "that software bound to the machine's name or UUID works: the drilled machine had new "
        "ones and kept its MAC addresses and disks"
    )
    if plan.emulated:
        yield "how fast it is and how it behaves on KVM: it ran emulated, on a made-up processor"
    if plan.nvram is None and "<nvram>" in plan.definition.xml:
        yield "its firmware settings: the point holds none, so it began with empty ones"
    if not plan.tpm and "<tpm" in plan.definition.xml:
        yield "what its TPM holds: the point has no state of it, so it began with an empty one"
    yield (
        "how long people, another host and its network would need: the RTO counts on this host, "
        "from the first byte asked of the repository"
    )
    yield from _listed("left out of the drilled machine", plan.definition.dropped)
    yield from _listed("changed in the drilled machine", plan.definition.changed)


def _network(*, reached: bool) -> str:
    if reached:
        return (
            "that it reaches other machines, names or the Internet: its network was isolated, with "
            "nobody on it but the probe, which gave addresses to cards that asked by DHCP (those "
            "they had, as far as known), and asked from the guest's own subnet: firewalls and "
            "routes between it and its users were not tried"
        )
    return (
        "that it reaches other machines or serves them: its network was isolated, without "
        "DHCP or any way out"
    )


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    every = list(lines)
    for line in every[:_MAX_LISTED]:
        yield f"{title}: {line}"
    if len(every) > _MAX_LISTED:
        yield f"{title}: {len(every) - _MAX_LISTED} more things"
