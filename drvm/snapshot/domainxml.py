"""Reading a domain's XML. Pure.

Source: libvirt's ``formatdomain``; what snapshot, commit and pivot do to the XML was measured
with libvirt 9.0 (``tests/e2e/test_capture.py`` holds it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.core.errors import HostError
from drvm.core.ids import is_disk_target, is_uuid

MAX_XML_CHARS = 4 * 1024 * 1024
REMOVABLE = frozenset({"cdrom", "floppy"})
_EMPTY_SOURCE = frozenset({"startupPolicy", "index"})
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
    empty: bool = False
    """A drive for removable media with nothing in it."""

    @property
    def top(self) -> Path | None:
        return self.layers[0].path

    def names(self, path: Path) -> bool:
        return any(layer.path == path for layer in self.layers) or (
            self.mirror is not None and self.mirror.path == path
        )


@dataclass(frozen=True, slots=True)
class Tpm:
    """An emulated TPM. ``version`` as in the XML (``2.0``); ``directory``: where its state lies,
    if the XML says it."""

    version: str | None
    directory: Path | None


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    uuid: str
    disks: tuple[Disk, ...]
    nvram: Path | None
    """The file with its UEFI variables."""
    special: tuple[str, ...]
    """What of its state outside the disks drvm can't capture, a sentence each."""
    tpm: Tpm | None = None
    chosen_nvram: bool = False
    """libvirt chooses the file: an inactive XML does not name it (libvirt 9.0)."""

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


def read(text: str) -> Machine:
    """Raises ``HostError`` for whatever is no sound domain XML."""
    domain = parse(text)
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
        tpm=_tpm(domain),
        chosen_nvram=_chosen_nvram(domain),
        special=_special_state(domain),
    )


def parse(text: str) -> Element:
    if len(text) > MAX_XML_CHARS:
        raise HostError(f"a domain XML of {len(text)} characters is not believed")
    try:
        domain: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"the domain's XML can't be read: {problem}") from None
    if domain.tag != "domain":
        raise HostError("the domain's XML is that of something else")
    return domain


def _disk(element: Element) -> Disk:
    target = target_of(element)
    if not is_disk_target(target):
        raise HostError(f"{target[:40]!r} is no disk target")
    mirror = element.find("mirror")
    source = element.find("source")
    kind = element.attrib.get("type", "")
    driver = element.find("driver")
    image_format = None if driver is None else driver.attrib.get("type")
    device = element.attrib.get("device", "disk")
    first = Layer(kind, _local_path(kind, source), image_format)
    return Disk(
        target=target,
        device=device,
        layers=(first, *_backing(element)),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        special=_special(element, source),
        mirror=None if mirror is None else _mirror(mirror),
        empty=device in REMOVABLE and _says_nothing(source),
    )


def _says_nothing(source: Element | None) -> bool:
    return source is None or (not len(source) and source.attrib.keys() <= _EMPTY_SOURCE)


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
        yield Layer(kind, _local_path(kind, store.find("source")), format_of(store))
        store = store.find("backingStore")
    raise HostError(f"a backing chain of more than {_MAX_LAYERS} layers is not believed")


def format_of(store: Element) -> str | None:
    found = store.find("format")
    return None if found is None else found.attrib.get("type")


def target_of(disk: Element) -> str:
    found = disk.find("target")
    return "" if found is None else found.attrib.get("dev", "")


def _local_path(kind: str, source: Element | None) -> Path | None:
    return source_path(source) if kind in ("file", "block") else None


def source_path(source: Element | None) -> Path | None:
    if source is None:
        return None
    text = source.attrib.get("file") or source.attrib.get("dev") or ""
    return Path(text) if text.startswith("/") else None


def _nvram(domain: Element) -> Path | None:
    element = domain.find("./os/nvram")
    if element is None or element.attrib.get("type", "file") != "file":
        return None
    text = (element.text or "").strip()
    return Path(text) if text.startswith("/") else source_path(element.find("source"))


def _chosen_nvram(domain: Element) -> bool:
    system, loader = domain.find("./os"), domain.find("./os/loader")
    stateless = loader is not None and loader.attrib.get("stateless") == "yes"
    automatic = system is not None and system.attrib.get("firmware") == "efi"
    return automatic and not stateless and domain.find("./os/nvram") is None


def _tpm(domain: Element) -> Tpm | None:
    """``None`` also for one whose state can't be captured: see ``_special_state``."""
    backend = domain.find("./devices/tpm/backend")
    if backend is None or _special_tpm(backend):
        return None
    source = backend.find("source")
    directory = Path(source.attrib["path"]) if source is not None else None
    return Tpm(backend.attrib.get("version"), directory)


def _special_tpm(backend: Element) -> str:
    if backend.attrib.get("type") != "emulator":
        return "its TPM is not libvirt's emulated one: the state of that is not captured"
    if backend.find("encryption") is not None:
        return "the state of its TPM is encrypted with a secret of the host, and is not captured"
    source = backend.find("source")
    if source is not None and (
        source.attrib.get("type") != "dir" or not source.attrib.get("path", "").startswith("/")
    ):
        return "the state of its TPM is not in a directory, and is not captured"
    return ""


def _special_state(domain: Element) -> tuple[str, ...]:
    found = []
    if domain.find("./os/nvram") is not None and _nvram(domain) is None:
        found.append("its UEFI variables are not in a local file and are not captured")
    backend = domain.find("./devices/tpm/backend")
    if backend is not None and (why := _special_tpm(backend)):
        found.append(why)
    devices = domain.find("./devices")
    for element in () if devices is None else devices:
        if element.tag == "memory" and element.attrib.get("model") in ("nvdimm", "virtio-pmem"):
            found.append("its persistent memory is not captured")
        if element.tag == "hostdev" and element.attrib.get("type") in ("scsi", "scsi_host"):
            found.append("a SCSI device of the host, passed through to it, is not captured")
    return tuple(dict.fromkeys(found))
