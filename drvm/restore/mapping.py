"""``--map-pool`` and ``--map-network``: what of the original goes where on the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from drvm.core.text import printable
from drvm.repository.manifest import Disk
from drvm.restore.machine.source import parse
from drvm.restore.preflight import listed

_WORDS = {"bridge": "bridge", "network": "network", "direct": "dev"}


def pools_of(
    original_xml: str, disks: tuple[Disk, ...], default: str, mapped: Mapping[str, str]
) -> dict[str, str]:
    """Target -> the pool that the disk goes to. The left side of ``mapped`` is the disk's target,
    the pool of the original, or the directory that its image was in; the first that fits, in this
    order. Raises ``RestoreError`` for XML that can't be read."""
    old = _old_places(original_xml)
    return {
        disk.target: next(
            (mapped[key] for key in (disk.target, *old.get(disk.target, ())) if key in mapped),
            default,
        )
        for disk in disks
    }


def unused(
    original_xml: str,
    disks: tuple[Disk, ...],
    pools: Mapping[str, str],
    networks: Mapping[str, str],
) -> Iterator[str]:
    """A line for each left side that names nothing of the original: likely a mistyped one."""
    old = _old_places(original_xml)
    places = {key for disk in disks for key in (disk.target, *old.get(disk.target, ()))}
    cables = {
        name
        for nic in parse(original_xml).iterfind("devices/interface")
        for source in nic.iterfind("source")
        if (name := source.get(_WORDS.get(nic.get("type", ""), "dev"), ""))
    }
    for switch, asked, there in (
        ("--map-pool", pools, places),
        ("--map-network", networks, cables),
    ):
        for key in sorted(set(asked) - there):
            choices = listed([printable(name, 100) for name in sorted(there)])
            asked_for = printable(f"{key}={asked[key]}", 200)
            yield f"{switch} {asked_for} fits nothing of the VM ({choices})"


def _old_places(original_xml: str) -> dict[str, tuple[str, ...]]:
    """Target -> what people know the place of its image by: a pool, or a directory."""
    found: dict[str, tuple[str, ...]] = {}
    for disk in parse(original_xml).iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None:
            continue
        path = source.get("file") or source.get("dev") or ""
        place = source.get("pool") or path.rpartition("/")[0]
        found[target.get("dev", "")] = (place,) if place else ()
    return found
