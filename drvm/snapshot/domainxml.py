"""Reading a domain's XML, and putting a disk of it back on its base image. Pure.

Source: libvirt's ``formatdomain``; what snapshot, commit and pivot do to the XML was measured
with libvirt 9.0 (``tests/e2e/test_capture.py`` holds it).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as PlainTree
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.core.errors import HostError
from drvm.core.ids import is_disk_target, is_uuid

MAX_XML_CHARS = 4 * 1024 * 1024
_MAX_LAYERS = 64


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain. ``path`` is ``None`` where it is no local file or device,
    or where the drive is empty. ``format`` is ``None`` where the XML does not say."""

    kind: str
    path: Path | None
    format: str | None


@dataclass(frozen=True, slots=True)
class Mirror:
    """An active block job. ``path``: the image that it writes to."""

    job: str
    path: Path | None
    ready: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """``layers``: as far as the XML names them, the one in use first, never none at all. An
    inactive XML usually names the first only."""

    target: str
    device: str
    layers: tuple[Layer, ...]
    readonly: bool
    shareable: bool
    transient: bool
    special: str | None
    """What drvm can't capture of it: ``encryption``, ``slices``, ``auth`` ..."""
    mirror: Mirror | None

    @property
    def top(self) -> Path | None:
        return self.layers[0].path

    def names(self, path: Path) -> bool:
        return any(layer.path == path for layer in self.layers) or (
            self.mirror is not None and self.mirror.path == path
        )


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    uuid: str
    disks: tuple[Disk, ...]
    nvram: Path | None
    """The file with its UEFI variables."""
    special: tuple[str, ...]
    """State outside the disks that drvm can't capture: ``tpm``, ``nvram`` not in a file."""

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


def read(text: str) -> Machine:
    """Raises ``HostError`` for whatever is no sound domain XML."""
    domain = _parse(text)
    uuid = (domain.findtext("uuid") or "").strip().lower()
    name = domain.findtext("name") or ""
    if not name or not is_uuid(uuid):
        raise HostError("the domain's XML has no name or no UUID")
    disks = tuple(_disk(element) for element in domain.iterfind("./devices/disk"))
    if len({disk.target for disk in disks}) != len(disks):
        raise HostError(f"two disks of {name} have one target")
    return Machine(
        name=name,
        uuid=uuid,
        disks=disks,
        nvram=_nvram(domain),
        special=_special_state(domain),
    )


def with_disk_on_base(text: str, target: str, overlay: Path, base: Layer) -> str:
    """The XML with ``target`` moved from ``overlay`` down to ``base``.

    What libvirt wrote into ``<backingStore>`` when the overlay came is what stood there before,
    so it moves back up; without one, ``base`` is written. Everything else stays as it is. Raises
    ``HostError`` if the disk is not on the overlay.
    """
    for prefix, address in _namespaces(text):
        with contextlib.suppress(ValueError):  # reserved prefixes keep generated names
            PlainTree.register_namespace(prefix, address)
    domain = _parse(text)
    for disk in domain.iterfind("./devices/disk"):
        if _target(disk) == target:
            if _source_path(disk.find("source")) != overlay:
                raise HostError(f"{target} is not on {overlay}")
            _lower(disk, base)
            return PlainTree.tostring(domain, encoding="unicode")
    raise HostError(f"the domain has no disk {target}")


def _lower(disk: Element, base: Layer) -> None:
    store = disk.find("backingStore")
    source = None if store is None else store.find("source")
    kind = base.kind if store is None else store.attrib.get("type", base.kind)
    image_format = (None if store is None else _format(store)) or base.format
    if source is None or _source_path(source) != base.path:
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


def _parse(text: str) -> Element:
    if len(text) > MAX_XML_CHARS:
        raise HostError(f"a domain XML of {len(text)} characters is not believed")
    try:
        domain: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"the domain's XML can't be read: {problem}") from None
    if domain.tag != "domain":
        raise HostError("the domain's XML is that of something else")
    return domain


def _namespaces(text: str) -> Iterator[tuple[str, str]]:
    try:
        for _, found in ElementTree.iterparse(io.BytesIO(text.encode()), events=("start-ns",)):
            yield found
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"the domain's XML can't be read: {problem}") from None


def _disk(element: Element) -> Disk:
    target = _target(element)
    if not is_disk_target(target):
        raise HostError(f"{target[:40]!r} is no disk target")
    mirror = element.find("mirror")
    source = element.find("source")
    kind = element.attrib.get("type", "")
    driver = element.find("driver")
    image_format = None if driver is None else driver.attrib.get("type")
    first = Layer(kind, _local_path(kind, source), image_format)
    return Disk(
        target=target,
        device=element.attrib.get("device", "disk"),
        layers=(first, *_backing(element)),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        special=_special(element, source),
        mirror=None if mirror is None else _mirror(mirror),
    )


def _special(disk: Element, source: Element | None) -> str | None:
    for name in ("encryption", "auth", "slices", "reservations"):
        if disk.find(name) is not None or (source is not None and source.find(name) is not None):
            return name
    return None


def _mirror(element: Element) -> Mirror:
    kind = element.attrib.get("type", "file")
    return Mirror(
        job=element.attrib.get("job", "copy"),
        path=_local_path(kind, element.find("source")),
        ready=element.attrib.get("ready") == "yes",
    )


def _backing(element: Element) -> Iterator[Layer]:
    store = element.find("backingStore")
    for _ in range(_MAX_LAYERS):
        if store is None or len(store) == 0:
            return
        kind = store.attrib.get("type", "")
        yield Layer(kind, _local_path(kind, store.find("source")), _format(store))
        store = store.find("backingStore")
    raise HostError(f"a backing chain of more than {_MAX_LAYERS} layers is not believed")


def _format(store: Element) -> str | None:
    found = store.find("format")
    return None if found is None else found.attrib.get("type")


def _target(disk: Element) -> str:
    found = disk.find("target")
    return "" if found is None else found.attrib.get("dev", "")


def _local_path(kind: str, source: Element | None) -> Path | None:
    return _source_path(source) if kind in ("file", "block") else None


def _source_path(source: Element | None) -> Path | None:
    if source is None:
        return None
    text = source.attrib.get("file") or source.attrib.get("dev") or ""
    return Path(text) if text.startswith("/") else None


def _nvram(domain: Element) -> Path | None:
    element = domain.find("./os/nvram")
    if element is None or element.attrib.get("type", "file") != "file":
        return None
    text = (element.text or "").strip()
    return Path(text) if text.startswith("/") else _source_path(element.find("source"))


def _special_state(domain: Element) -> tuple[str, ...]:
    found = []
    if domain.find("./os/nvram") is not None and _nvram(domain) is None:
        found.append("nvram")
    if domain.find("./devices/tpm/backend[@type='emulator']") is not None:
        found.append("tpm")
    return tuple(found)
