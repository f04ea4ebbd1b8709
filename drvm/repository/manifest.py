"""What a point says of itself: the manifest, created once and never rewritten."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from drvm.core.clock import parse_rfc3339, rfc3339
from drvm.core.errors import DamageFound, UnsupportedFormat
from drvm.core.ids import is_disk_target, is_point_id, is_tpm_file, is_uuid
from drvm.repository.layout import FORMAT_VERSION, decode_json
from drvm.repository.packs import BlobRef

MAX_DISK_BYTES = 1 << 52

MEMORY = "memory"
"""The target of a machine's memory, in the place of a disk's."""

MAX_COUNT = (1 << 63) - 1
"""Numbers of other sizes are no numbers of bytes: they only upset whoever computes with them."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class StoredBlob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reference to a blob: the pack's name in hex, and the blob's number in it."""

    pack: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    number: _Count

    @staticmethod
    def of(ref: BlobRef) -> StoredBlob:
        return StoredBlob(ref.pack.hex(), ref.number)

    def ref(self) -> BlobRef:
        return BlobRef(bytes.fromhex(self.pack), self.number)


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``root`` is the root of the disk map, absent for a disk of zeroes.

    ``read_bytes``: what was read from the source; ``new_bytes``: what of it was not yet stored;
    ``stored_bytes``: what that took in data packs after compression and sealing.
    """

    target: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK_BYTES)]
    format: Annotated[str, msgspec.Meta(pattern=r"\A(raw|qcow2)\Z")]
    method: str
    read_bytes: _Count
    new_bytes: _Count
    stored_bytes: _Count
    image_options: dict[str, str] = {}
    root: StoredBlob | None = None


class CopiedFrom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``repository``: the id of the one that it was read from; ``host`` copied it, and ``at`` is
    when that began, RFC 3339 in UTC."""

    repository: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    host: str
    at: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``created`` is the instant that the point shows, RFC 3339 in UTC; ``finished`` when the
    last byte was stored. ``stored_bytes``: all packs that this point added, metadata and padding
    included. ``tpm``: the state of an emulated TPM, by file name. ``host`` and ``drvm_version`` are
    who wrote it, also where it was copied since. Points of one ``group`` show one instant of
    several machines. ``memory``: libvirt's file of the memory of a machine that ran, stored as a
    disk is, under the target ``memory``."""

    format_version: int = FORMAT_VERSION
    id: str
    vm: str
    vm_uuid: str
    created: str
    finished: str
    consistency: Literal["filesystem", "crash", "offline"]
    engine: str
    host: str
    drvm_version: str
    parent: str | None = None
    frozen_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    stored_bytes: _Count = 0
    disks: tuple[Disk, ...] = ()
    definition: StoredBlob | None = None
    nvram: StoredBlob | None = None
    tpm: dict[str, StoredBlob] = {}
    guest: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    group: str | None = None
    copied_from: CopiedFrom | None = None
    mark: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")] | None = None
    memory: Disk | None = None

    @property
    def streams(self) -> tuple[Disk, ...]:
        """All that has a disk map: the disks, then the memory."""
        return self.disks if self.memory is None else (*self.disks, self.memory)

    def with_streams(self, streams: Sequence[Disk]) -> Manifest:
        """The same with those of ``streams`` in their places."""
        count = len(self.disks)
        memory = None if self.memory is None else streams[count]
        return replace(self, disks=tuple(streams[:count]), memory=memory)

    def marked(self) -> bytes:
        """What ``mark`` is made of: by it the host that wrote the point knows it as its own."""
        roots = [[d.target, str(d.size_bytes), _named(d.root)] for d in self.streams]
        tpm = [[name, _named(blob)] for name, blob in sorted(self.tpm.items())]
        blobs = [_named(self.definition), _named(self.nvram), tpm]
        names = [self.id, self.vm_uuid, self.created, self.vm, self.host]
        return msgspec.json.encode([names, roots, blobs])

    def blobs(self) -> tuple[StoredBlob, ...]:
        """All but those of the disk maps."""
        return (*filter(None, (self.definition, self.nvram)), *self.tpm.values())

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def digest(sealed_manifest: bytes) -> str:
    """What a final says of the manifest: SHA-256 of the object as it is stored."""
    return hashlib.sha256(sealed_manifest).hexdigest()


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Raises ``DamageFound`` or ``UnsupportedFormat``. Even a key holder may write lies: names
    become part of paths, sizes of allocations, so they are checked here, once."""
    version = decode_json(data, _AnyVersion, name).format_version
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(f"{name} has format version {version}")
    manifest = decode_json(data, Manifest, name)
    try:
        _check(manifest)
    except ValueError as error:
        raise DamageFound(f"{name} is not a valid manifest: {error}") from None
    return manifest


def _named(blob: StoredBlob | None) -> str:
    return f"{blob.pack} {blob.number}" if blob is not None else ""


class _AnyVersion(msgspec.Struct):
    format_version: int


def _check(manifest: Manifest) -> None:
    ids = [i for i in (manifest.id, manifest.parent, manifest.group) if i is not None]
    if not all(map(is_point_id, ids)) or not is_uuid(manifest.vm_uuid):
        raise ValueError("ids are malformed")
    targets = [disk.target for disk in manifest.disks]
    if len(set(targets)) != len(targets) or not all(map(is_disk_target, targets)):
        raise ValueError("disk targets are malformed")
    if manifest.memory is not None and (manifest.memory.target != MEMORY or MEMORY in targets):
        raise ValueError("the memory is malformed")
    if not all(map(is_tpm_file, manifest.tpm)):
        raise ValueError("files of the TPM are malformed")
    copied_at = [manifest.copied_from.at] if manifest.copied_from is not None else []
    if not all(map(_is_instant, (manifest.created, manifest.finished, *copied_at))):
        raise ValueError("times are malformed")


def _is_instant(text: str) -> bool:
    """Whether it is written as ``rfc3339`` writes: such texts sort by time."""
    try:
        return rfc3339(parse_rfc3339(text)) == text
    except (ValueError, OverflowError):
        return False
