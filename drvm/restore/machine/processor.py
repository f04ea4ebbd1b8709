"""The processor of the restored machine: the original's, or the one that the operator chooses."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from drvm.restore.machine.allowlist import Copier
from drvm.restore.machine.machine_rules import CPU, CPU_TOPOLOGY

_MODES = ("host-model", "host-passthrough", "maximum")


def build_cpu(source: ET.Element, chosen: str | None, copier: Copier) -> ET.Element | None:
    """``chosen``: a mode or the name of a model instead of the original's; the topology stays."""
    if chosen is None or chosen == source.get("mode"):
        made = copier.element(source, CPU, "cpu")
    else:
        old = (source.findtext("model") or "").strip() or source.get("mode") or "the default"
        copier.changed.add(f"cpu: {chosen} instead of {old}")
        made = chosen_cpu(chosen)
        topology = ET.Element("cpu")
        topology.extend(child for child in source if child.tag in CPU_TOPOLOGY)
        copier.children(topology, made, CPU_TOPOLOGY, "cpu")
    if made is not None:
        _keep_known_distances(made, copier)
    return made


def chosen_cpu(chosen: str) -> ET.Element:
    """A mode is what the host can do, and needs no check; a model is given whole or not at all."""
    if chosen in _MODES:
        return ET.Element("cpu", {"mode": chosen, "check": "none"})
    made = ET.Element("cpu", {"mode": "custom", "match": "exact", "check": "partial"})
    ET.SubElement(made, "model", {"fallback": "forbid"}).text = chosen
    return made


def _keep_known_distances(cpu: ET.Element, copier: Copier) -> None:
    """Only to NUMA cells that are there, and never none: else libvirt 9.0 writes past its memory,
    and ends (``tests/contract/test_restored_definition.py``)."""
    for numa in cpu.iterfind("numa"):
        cells = numa.findall("cell")
        known = {cell.get("id", str(place)) for place, cell in enumerate(cells)}
        for cell in cells:
            distances = cell.find("distances")
            if distances is None:
                continue
            named = {sibling.get("id") for sibling in distances}
            if not named or named - known:
                cell.remove(distances)
                copier.dropped.add("cpu/numa/cell/distances (to a cell that is not there)")
