"""What a drill proves and what it does not, in words for an auditor. Honest before nice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.drill.checks.base import is_scan
from drvm.drill.plan import DrillPlan
from drvm.drill.tools import Member
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
    disks = f"{count} {'disk' if count == 1 else 'disks'}"
    if plan.request.method == "boot":
        return f"of its {disks} all that the guest read was decrypted and matched its id"
    return (
        f"every stored block of {disks} "
        f"({format_bytes(written_bytes)}) was read back, decrypted and matched its id"
    )


def started_proven(plan: DrillPlan) -> str:
    how = ", emulated instead of on KVM" if plan.emulated else ""
    return f"libvirt on {plan.host} accepted the rebuilt machine and started it{how}"


def not_proven(plan: DrillPlan, group: Member | None = None) -> tuple[str, ...]:
    """The most telling first: whoever keeps them may cut the end off."""
    return tuple(_not_proven(plan, group))


def _not_proven(plan: DrillPlan, group: Member | None) -> Iterator[str]:
    point = plan.request.point
    if group is not None:
        title = "that its group can be recovered, of which this machine was not drilled"
        yield from _listed(title, [printable(line, 300) for line in group.absent])
    if plan.request.method == "boot":
        yield (
            "that all of its disks can be restored, and how long that takes: it ran over the "
            "repository, and only what the guest read was fetched"
        )
    if all(is_scan(check) for check in plan.checks):
        yield "that it came up: it was started, and no check asked it anything"
    if group is not None and not group.one_instant:
        yield (
            "that the machines of its group fit together: their points are not of one instant, "
            "as there is no consistency group that has them all"
        )
    if group is not None and group.alike and "network" in needed(plan.checks):
        names = ", ".join(printable(name, 60) for name in group.alike[:_MAX_LISTED])
        yield (
            f"that it was this machine that answered over the network: {names} had, or were "
            "asked at, an address of its, and all were in one network"
        )
    if point.consistency in _CONSISTENCY:
        yield _CONSISTENCY[point.consistency]
    if plan.network is not None:
        yield _network(reached="network" in needed(plan.checks), grouped=group is not None)
    yield (
        "that software bound to the machine's name or UUID works: the drilled machine had new "
        "ones and kept its MAC addresses and disks"
    )
    if plan.emulated:
        yield "how fast it is and how it behaves on KVM: it ran emulated, on a made-up processor"
    if plan.nvram is None and "<nvram>" in plan.definition.xml:
        yield "its firmware settings: the point holds none, so it began with empty ones"
    if not plan.tpm and "<tpm" in plan.definition.xml:
        why = "the state that the point has of it can't be carried to another host"
        if not point.tpm:
            why = "the point has no state of it"
        yield f"what its TPM holds: {why}, so it began with an empty one"
    yield (
        "how long people, another host and its network would need: the RTO counts on this host, "
        "from the first byte asked of the repository"
    )
    yield from _listed(
        "not asked, as that host's drills can't be reached from here",
        [printable(check.name, 200) for check in plan.not_made],
    )
    yield from _listed("left out of the drilled machine", plan.definition.dropped)
    yield from _listed("changed in the drilled machine", plan.definition.changed)


def _network(*, reached: bool, grouped: bool) -> str:
    others = "machines outside its group" if grouped else "other machines"
    if reached:
        return (
            f"that it reaches {others}, names or the Internet: its network was isolated, with "
            "nobody else on it but the probe, which gave addresses to cards that asked by DHCP "
            "(those they had, as far as known), and asked from the guest's own subnet: firewalls "
            "and routes between it and its users were not tried"
        )
    return (
        f"that it reaches {others} or serves them: its network was isolated, without "
        "DHCP or any way out"
    )


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    every = list(lines)
    for line in every[:_MAX_LISTED]:
        yield f"{title}: {line}"
    if len(every) > _MAX_LISTED:
        yield f"{title}: {len(every) - _MAX_LISTED} more things"
