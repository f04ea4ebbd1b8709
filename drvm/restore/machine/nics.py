"""A network card of the restored machine: the guest sees it as before, its cable goes elsewhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drvm.core.errors import RestoreError
from drvm.restore.machine.allowlist import Copier, Rule
from drvm.restore.machine.device_rules import NIC_CHILDREN, NIC_NETWORK_CHILDREN
from drvm.restore.machine.values import MAC, TOKEN

_NETWORK_NAME = re.compile(r"[\w][\w .:+@-]{0,127}")
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}", re.ASCII)
_ORIGIN = {"network": "network", "bridge": "bridge", "direct": "dev"}
_MAC_TRIES = 1000


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """A network that a rebuilt machine needs on the target.

    ``origin``: its name on the original host, the left side of ``--map-network``.
    ``kind``: ``network`` (libvirt's) or ``bridge`` (the host's).
    """

    origin: str
    kind: str
    name: str


def renew_macs(
    devices: ET.Element | None,
    new_mac: Callable[[], str],
    others: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """A new address for each one in the original (lower case), all different from all old ones and
    from those of ``others``.

    Raises ``RestoreError`` if ``new_mac`` keeps giving the same ones.
    """
    found = () if devices is None else devices.iterfind("interface/mac")
    old = [address for mac in found if MAC.fullmatch(address := mac.get("address", "").lower())]
    renewed: dict[str, str] = {}
    taken = {*old, *others}
    for address in dict.fromkeys(old):
        for _ in range(_MAC_TRIES):
            if (fresh := new_mac().lower()) not in taken:
                break
        else:
            raise RestoreError("no unused MAC address could be made")
        if not MAC.fullmatch(fresh):
            raise RestoreError(f"{fresh!r} is not a MAC address")
        taken.add(fresh)
        renewed[address] = fresh
    return renewed


def split_network(choice: str, kind: str) -> tuple[str, str]:
    """The right side of ``--map-network``: ``NAME``, ``network:NAME`` or ``bridge:NAME`` ->
    (kind, name); ``kind`` is what a bare name means. Raises ``RestoreError``."""
    prefix, colon, rest = choice.partition(":")
    if colon and prefix in ("network", "bridge"):
        kind, choice = prefix, rest
    pattern = _BRIDGE_NAME if kind == "bridge" else _NETWORK_NAME
    if not pattern.fullmatch(choice):
        raise RestoreError(
            f"{choice!r} can't be the name of a {kind}",
            hint="use --map-network OLD=NAME, OLD=network:NAME or OLD=bridge:NAME",
        )
    return kind, choice


def build_nic(
    source: ET.Element,
    *,
    networks: Mapping[str, str],
    isolate_to: str | None,
    copier: Copier,
) -> tuple[ET.Element, NetworkUse | None] | None:
    """The card on its new network; ``None`` for one that only the original host could connect.

    With ``isolate_to`` every card goes there, whatever it was.
    """
    mac = source.find("mac")
    address = "" if mac is None else mac.get("address", "")
    address = address if MAC.fullmatch(address) else ""
    where = f"interface {address}".rstrip()
    kind = source.get("type", "")
    old_source = source.find("source")
    rules: dict[str, Rule] = dict(NIC_CHILDREN)
    use: NetworkUse | None
    if isolate_to is not None:
        use = NetworkUse(isolate_to, *split_network(isolate_to, "network"))
    elif kind == "user":
        use = None
    else:
        use = _choose(kind, old_source, networks, where, copier)
        if use is None:
            return None
        rules.update(NIC_NETWORK_CHILDREN)
    nic = ET.Element("interface", {"type": use.kind if use else "user"})
    if address:
        nic.append(ET.Element("mac", {"address": copier.renew(address)}))
    if use is not None:
        cable = ET.SubElement(nic, "source", {use.kind: use.name})
        if isolate_to is None:
            _keep_port(source, old_source, nic, cable, use)
    handled = frozenset({"mac", "source", "target", "virtualport"})
    copier.children(source, nic, rules, where, handled=handled)
    return nic, use


def _choose(
    kind: str,
    old_source: ET.Element | None,
    networks: Mapping[str, str],
    where: str,
    copier: Copier,
) -> NetworkUse | None:
    origin = "" if old_source is None else old_source.get(_ORIGIN.get(kind, "dev"), "")
    mapped = networks.get(origin)
    if mapped is not None:
        bare = "bridge" if kind == "bridge" else "network"
        use = NetworkUse(origin, *split_network(mapped, bare))
        if (use.kind, use.name) != (kind, origin):
            copier.changed.add(f"{where}: {kind} {origin} -> {use.kind} {use.name}")
        return use
    if kind in ("network", "bridge"):
        pattern = _NETWORK_NAME if kind == "network" else _BRIDGE_NAME
        if pattern.fullmatch(origin):
            return NetworkUse(origin, kind, origin)
    advice = "add a card after the restore"
    if TOKEN.fullmatch(origin):
        advice = f"keep it with --map-network {origin}=NAME"
    copier.dropped.add(f"{where} (type {kind!r} belongs to the original host: {advice})")
    return None


def _keep_port(
    source: ET.Element,
    old_source: ET.Element | None,
    nic: ET.Element,
    cable: ET.Element,
    use: NetworkUse,
) -> None:
    """The port group of a network that keeps its name, and the fact that a bridge is Open
    vSwitch's (its interface id is libvirt's to make)."""
    group = "" if old_source is None else old_source.get("portgroup", "")
    if use.kind == "network" and use.name == use.origin and TOKEN.fullmatch(group):
        cable.set("portgroup", group)
    port = source.find("virtualport")
    if use.kind == "bridge" and port is not None and port.get("type") == "openvswitch":
        nic.append(ET.Element("virtualport", {"type": "openvswitch"}))
