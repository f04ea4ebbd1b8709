"""Taking an image out of the chains that a domain's XML names. Pure.

Source: libvirt's ``formatdomain``; what snapshot, commit and pivot do to the XML was measured
with libvirt 9.0 (``tests/e2e/test_capture.py`` and ``tests/e2e/test_standing.py`` hold it).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree as PlainTree
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.core.errors import HostError
from drvm.snapshot.domainxml import Layer, format_of, parse, source_path, target_of
from drvm.snapshot.journal import JournalDisk


def on_own_images(text: str, overlays: Iterable[JournalDisk]) -> str:
    """The XML as it was before the machine ran on ``overlays``: each disk whose first image is
    one of them lies on its base instead. All others stay as they are."""
    for disk in overlays:
        found = _disk(parse(text), disk.target)
        if found is not None and source_path(found.find("source")) == Path(disk.overlay):
            base = Layer(disk.base_kind, Path(disk.base), disk.base_format)
            text = with_disk_on_base(text, disk.target, Path(disk.overlay), base)
    return text


def with_disk_on_base(text: str, target: str, overlay: Path, base: Layer) -> str:
    """The XML with ``target`` moved from ``overlay`` down to ``base``.

    What libvirt wrote into ``<backingStore>`` when the overlay came is what stood there before,
    so it moves back up; without one, ``base`` is written. Everything else stays as it is. Raises
    ``HostError`` if the disk is not on the overlay.
    """
    _keep_prefixes(text)
    domain = parse(text)
    disk = _disk(domain, target)
    if disk is None:
        raise HostError(f"the domain has no disk {target}")
    if source_path(disk.find("source")) != overlay:
        raise HostError(f"{target} is not on {overlay}")
    _lower(disk, base)
    return PlainTree.tostring(domain, encoding="unicode")


def without_layer(text: str, target: str, layer: Path) -> str:
    """The XML with the chain of ``target`` closed where ``layer``, which is not the image in use,
    stood in it. The text itself where no ``<backingStore>`` of the disk names it."""
    domain = parse(text)
    above = _disk(domain, target)
    while above is not None:
        store = above.find("backingStore")
        if store is not None and source_path(store.find("source")) == layer:
            place = list(above).index(store)
            above.remove(store)
            below = store.find("backingStore")
            if below is not None:
                above.insert(place, below)
            _keep_prefixes(text)
            return PlainTree.tostring(domain, encoding="unicode")
        above = store
    return text


def _lower(disk: Element, base: Layer) -> None:
    store = disk.find("backingStore")
    source = None if store is None else store.find("source")
    kind = base.kind if store is None else store.attrib.get("type", base.kind)
    image_format = (None if store is None else format_of(store)) or base.format
    if source is None or source_path(source) != base.path:
        kind, image_format = base.kind, base.format
        source = Element("source", {"dev" if kind == "block" else "file": str(base.path)})
        store = None
    source.attrib.pop("index", None)
    old_source = disk.find("source")
    driver = disk.find("driver")
    if driver is None:
        driver = PlainTree.SubElement(disk, "driver", {"name": "qemu"})
    driver.set("type", image_format or "raw")
    disk.set("type", kind)
    if old_source is not None:
        position = list(disk).index(old_source)
        disk.remove(old_source)
        disk.insert(position, source)
    old_store = disk.find("backingStore")
    if old_store is not None:
        disk.remove(old_store)
    deeper = None if store is None else store.find("backingStore")
    if deeper is not None:
        disk.insert(list(disk).index(source) + 1, deeper)


def _disk(domain: Element, target: str) -> Element | None:
    disks = domain.iterfind("./devices/disk")
    return next((disk for disk in disks if target_of(disk) == target), None)


def _keep_prefixes(text: str) -> None:
    """So that the XML is written with the prefixes that it was read with."""
    for prefix, address in _namespaces(text):
        with contextlib.suppress(ValueError):  # reserved prefixes keep generated names
            PlainTree.register_namespace(prefix, address)


def _namespaces(text: str) -> Iterator[tuple[str, str]]:
    try:
        for _, found in ElementTree.iterparse(io.BytesIO(text.encode()), events=("start-ns",)):
            yield found
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"the domain's XML can't be read: {problem}") from None
