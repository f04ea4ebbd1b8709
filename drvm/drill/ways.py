"""The ways to a drilled guest that its checks need besides libvirt: what could be in the way, asked
when the drill is planned, and the way itself, for as long as it runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_interface
from itertools import islice

from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import Trace, no_trace
from drvm.drill.checks.base import Address, Card, Check, Need, Wire
from drvm.drill.checks.http import HttpCheck
from drvm.drill.checks.malware import MalwareCheck, malware_problems
from drvm.drill.checks.reaching import parse_address
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.wire.line import joined, wire_problems
from drvm.host.model import Host
from drvm.restore.machine.source import parse

_MAX_TOLD = 64


def needed(checks: Iterable[Check]) -> frozenset[Need]:
    return frozenset(need for check in checks for need in check.needs)


def asked_at(checks: Iterable[Check]) -> Iterator[Address]:
    """The addresses that checks name themselves."""
    for check in checks:
        if isinstance(check, TcpCheck | HttpCheck) and check.address is not None:
            yield ip_interface(check.address)


def way_problems(
    host: Host, checks: Sequence[Check], *, has_card: bool, away: bool = False
) -> Iterator[str]:
    """A line for each thing that keeps checks from being made at all. ``away``: the machine will
    run on a host that is not this one."""
    needs = needed(checks)
    if "network" in needs:
        names = ", ".join(c.name for c in islice((c for c in checks if "network" in c.needs), 5))
        if away:
            yield (
                f"{host.uri} is another machine, and its isolated network can't be reached from "
                f"here: drill there, or leave out {names}"
            )
        elif not has_card:
            yield f"the machine has no network card: leave out {names}"
        else:
            yield from wire_problems()
    if "console" in needs and away:
        yield (
            f"{host.uri} is another machine, and what is written to its consoles is kept there: "
            "drill there, or leave out the check of the console"
        )
    for check in checks:
        if isinstance(check, ScriptCheck | MalwareCheck) and shutil.which(check.run[0]) is None:
            yield f"the check {check.name} needs a program that can't be run here: {check.run[0]}"
    if "disks" in needs:
        yield from malware_problems(SystemProcesses())


def cards_of(definition_xml: str, told: Mapping[str, str]) -> tuple[Card, ...]:
    """The cards of a rebuilt machine, and the addresses they had, by what the guest's agent told
    when the point was taken (``drvm.snapshot.guestview``): hostile text, which decides only what
    the guest gets in its own isolated network."""
    found = parse(definition_xml).iterfind("devices/interface/mac")
    macs = list(dict.fromkeys(mac.get("address", "").lower() for mac in found))
    pairs = [piece.partition(" ") for piece in told.get("cards", "").split("; ")[:_MAX_TOLD]]
    if not any(mac in macs for mac, _, _ in pairs) and len(macs) == 1:
        # of an older drvm: which card it is, only one card can tell
        names = [piece.partition(" ") for piece in told.get("addresses", "").split("; ")]
        if len({name for name, _, _ in names}) == 1:
            pairs = [(macs[0], " ", text) for _, _, text in names[:_MAX_TOLD]]
    had: dict[str, list[Address]] = {mac: [] for mac in macs}
    for mac, _, text in pairs:
        address = parse_address(text)
        if mac in had and address is not None:
            had[mac].append(address)
    return tuple(Card(mac, tuple(addresses)) for mac, addresses in had.items())


@contextlib.contextmanager
def way_into(
    host: Host,
    network: str | None,
    drill_id: str,
    cards: Sequence[Card],
    checks: Collection[Check],
    trace: Trace = no_trace,
    processes: Processes | None = None,
) -> Iterator[Wire | None]:
    """Reach the machines with these cards, of which there may be several, in the drill's network,
    which exists. To be entered before they start, and left by the same thread. ``None`` where no
    check needs it. Raises ``HostError``."""
    if network is None or "network" not in needed(checks):
        yield None
        return
    bridge = host.network_bridge(network)
    asked = list(asked_at(checks))
    with joined(processes or SystemProcesses(), bridge, drill_id, cards, trace, asked) as line:
        yield line
