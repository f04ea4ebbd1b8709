"""drvm's own checkpoints: made with every point, believed only for exactly that point.

A checkpoint ``drvm-<point id>`` is made right before the snapshot of that point, so its bitmaps
mark at least what was written since. QEMU keeps every bitmap recording, also through snapshot,
commit and an offline merge (``tests/e2e/test_checkpoints.py`` holds it); therefore the bitmap of
the parent's checkpoint says it all, and others need not be united with it. See
``docs/adr/015-checkpoints-as-hints.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from drvm.core.errors import CaptureError, HostError, HostUnreachable
from drvm.host.disks import ImageInfo
from drvm.host.model import Domain
from drvm.snapshot.capture import CaptureRequest, ParentPoint
from drvm.snapshot.frozen import sectors_written

FULL_READ = "full-read"
CHECKPOINT = "checkpoint"
STANDING_OVERLAY = "standing-overlay"
NAME = re.compile(r"drvm-[0-9a-f]{16}", re.ASCII)
"""Of every checkpoint that drvm makes: no other is ever deleted."""

_MAX_XML_CHARS = 1024 * 1024
_GRANULARITIES_BYTES = frozenset(1 << bits for bits in range(9, 32))


@dataclass(frozen=True, slots=True)
class Image:
    """One disk's images, the one that is read first. ``stands``: that is an overlay which stands,
    and the machine's own image is the next."""

    target: str
    chain: tuple[ImageInfo, ...]
    stands: bool = False

    @property
    def info(self) -> ImageInfo:
        return self.chain[0]

    @property
    def own(self) -> ImageInfo:
        return self.chain[1 if self.stands else 0]


@dataclass(frozen=True, slots=True)
class Hint:
    """How one disk's changes are found: by ``bitmap``, or by what its standing overlay holds, or,
    where there is neither, by reading all of it, for the reason ``doubt``."""

    bitmap: str | None = None
    doubt: str = ""
    overlaid: bool = False

    @property
    def is_doubtful(self) -> bool:
        return self.bitmap is None and not self.overlaid

    @property
    def method(self) -> str:
        if self.overlaid:
            return STANDING_OVERLAY
        if self.bitmap is not None:
            return CHECKPOINT
        return f"{FULL_READ}: {self.doubt}" if self.doubt else FULL_READ


def name_of(point_id: str) -> str:
    return f"drvm-{point_id}"


def hints(domain: Domain, request: CaptureRequest, images: Sequence[Image]) -> dict[str, Hint]:
    """What libvirt's checkpoints promise, by target; asked before anything is touched. What the
    bitmaps themselves are like shows only when the images are frozen: see ``confirmed``."""
    parent, known, doubt = request.parent, {}, ""
    if request.changed_blocks != CHECKPOINT:
        doubt = "the policy wants no checkpoints"
    elif parent is None:
        doubt = "there is no earlier point"
    elif _internal_snapshots(domain):
        doubt = "the machine has internal snapshots"
    else:
        try:
            known = _identities(domain.checkpoint_xml(name_of(parent.id)))
        except HostUnreachable:
            raise
        except HostError:
            doubt = f"there is no checkpoint of the point {parent.id}"
    found = {}
    for image in images:
        why = _raw(image) or doubt or _doubt(image, parent, known)
        found[image.target] = Hint(doubt=why) if why or not parent else Hint(name_of(parent.id))
    return found


def _doubt(image: Image, parent: ParentPoint | None, known: Mapping[str, str]) -> str:
    size_bytes = parent.sizes_bytes.get(image.target) if parent is not None else None
    if size_bytes is None or image.target not in known:
        return "the parent point has no checkpoint of this disk"
    if known[image.target] != identity(image):
        return "the image is another one, or its backing file was changed"
    if size_bytes != image.info.virtual_size_bytes:
        return "the disk was resized"
    return ""


def confirmed(hint: Hint, frozen: ImageInfo) -> Hint:
    """The hint in the face of the bitmap as it is stored in the image that is frozen now."""
    if hint.bitmap is None:
        return hint
    bitmap = next((b for b in frozen.bitmaps if b.name == hint.bitmap), None)
    if bitmap is None:
        return Hint(doubt="the image has lost the checkpoint's bitmap")
    if "in-use" in bitmap.flags:
        return Hint(doubt="the bitmap is inconsistent: QEMU was killed")
    if "auto" not in bitmap.flags:
        return Hint(doubt="the bitmap was switched off")
    if bitmap.granularity_bytes not in _GRANULARITIES_BYTES:
        return Hint(doubt=f"a bitmap with granularity {bitmap.granularity_bytes} is not believed")
    return hint


def renew(domain: Domain, request: CaptureRequest, images: Sequence[Image]) -> str:
    """Before the snapshot: ``prepare``, and make the checkpoint of this point. Returns what went
    wrong, empty where nothing did: a backup needs no checkpoint."""
    try:
        wanted = prepare(domain, request, images)
        if wanted is not None:
            domain.create_checkpoint(wanted)
    except HostError as problem:
        return unmade(problem.message)
    return ""


def prepare(domain: Domain, request: CaptureRequest, images: Sequence[Image]) -> str | None:
    """Delete drvm's checkpoints but the parent's, and return the XML of the one of this point.
    Raises ``HostError``.

    The parent's stays until the next capture, which knows then whether this point was committed.
    So there are two at most, whatever fails or is killed. None is kept where the machine has
    internal snapshots: QEMU refuses to revert to one while there are bitmaps.
    """
    wanted = [image for image in images if not _raw(image)]
    keep = request.parent and name_of(request.parent.id)
    barred = request.changed_blocks != CHECKPOINT or bool(_internal_snapshots(domain))
    for name in domain.checkpoint_names():
        if NAME.fullmatch(name) and (barred or name != keep):
            domain.delete_checkpoint(name)
    return _checkpoint_xml(request.point_id, wanted) if wanted and not barred else None


def unmade(reason: str) -> str:
    """For people, where there will be no checkpoint of this point."""
    return f"the next backup will read everything: {reason}"


def identity(image: Image) -> str:
    """Tells the image from any other, and its backing files from what they were, in 16 hex
    digits. An image that was moved, copied or put in another's place is another one; so is a
    block device below another image once it was written to, or the host was started anew."""
    parts: list[object] = []
    for depth, layer in enumerate(image.chain):
        try:
            status = layer.path.stat()
            written = sectors_written(status)
        except OSError as problem:
            raise CaptureError(f"an image can't be looked at: {problem}") from None
        parts += [layer.path, layer.format, status.st_ino]
        if depth:
            parts += [written] if written is not None else [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(repr([str(part) for part in parts]).encode()).hexdigest()[:16]


def _internal_snapshots(domain: Domain) -> set[str]:
    """Those that QEMU would not revert to."""
    return {*domain.snapshot_names()} - {*domain.external_snapshot_names()}


def _raw(image: Image) -> str:
    return "" if image.info.format == "qcow2" else f"{image.info.format} images have no bitmaps"


def _checkpoint_xml(point_id: str, images: Sequence[Image]) -> str:
    """Disks that are not named get no bitmap. The description is ours to read again."""
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name_of(point_id)
    words = " ".join(f"{image.target}={identity(image)}" for image in images)
    SubElement(root, "description").text = f"drvm: {words}"
    disks = SubElement(root, "disks")
    for image in images:
        SubElement(disks, "disk", {"name": image.target, "checkpoint": "bitmap"})
    return tostring(root, encoding="unicode")


def _identities(text: str) -> dict[str, str]:
    """Disks that the checkpoint has a bitmap of, and what their images were. Raises ``HostError``
    for what drvm did not write."""
    if len(text) > _MAX_XML_CHARS:
        raise HostError(f"a checkpoint of {len(text)} characters is not believed")
    try:
        root: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise HostError(f"a checkpoint's XML can't be read: {problem}") from None
    words = (root.findtext("description") or "").split()
    if words[:1] != ["drvm:"]:
        raise HostError("the checkpoint is not drvm's")
    told = dict(re.findall(r"^([a-z0-9]+)=([0-9a-f]{16})$", "\n".join(words[1:]), re.MULTILINE))
    marked = {
        disk.attrib.get("name")
        for disk in root.iterfind("./disks/disk")
        if disk.attrib.get("checkpoint") == "bitmap"
    }
    return {target: image for target, image in told.items() if target in marked}
