"""The repository as its users see it."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from dataclasses import replace
from pathlib import Path

import msgspec

from drvm.chunker.blocks import BlockHasher, Ids
from drvm.core.errors import (
    DamageFound,
    NoRepository,
    ObjectDamaged,
    ObjectExists,
    ObjectMissing,
    RepositoryError,
    StoreRefused,
    UnknownPoint,
    UsageError,
)
from drvm.core.progress import Trace, no_trace
from drvm.repository import pins
from drvm.repository import points as protocol
from drvm.repository.catalog import Catalog
from drvm.repository.checks import Checks
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.diskmap import DiskMap
from drvm.repository.drills import Drills
from drvm.repository.fingerprints import Fingerprints
from drvm.repository.fingerprints import sweep as sweep_fingerprints
from drvm.repository.generations import Generations
from drvm.repository.index import Found, find
from drvm.repository.index.sparse import DEFAULT_LIMITS, IndexLimits
from drvm.repository.keyring import Keyring, new_slot, read_slots
from drvm.repository.keys import UNNAMED, About, Opened, open_slots
from drvm.repository.layout import (
    CONFIG,
    FORMAT_VERSION,
    KEYS,
    LOCKED,
    PACKS,
    PINS,
    POINTS,
    RepositoryConfig,
    decode_config,
    point_object,
)
from drvm.repository.leaf_reader import LeafReader
from drvm.repository.leases import Leases
from drvm.repository.local import open_local
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.packs import PackReader
from drvm.repository.pins import Pin
from drvm.repository.points import Listing, Point
from drvm.repository.remembered import Remembered
from drvm.repository.session import Session
from drvm.repository.trust import DEFAULT_TRUST, HostTrust
from drvm.store.base import Store
from drvm.store.first_versions import alarms_of, check_untouched, retained_until


class Repository:
    """An opened repository. One backup at a time; any number of readers.

    ``cache_dir`` holds nothing that can't be had again from the store.
    """

    def __init__(
        self,
        store: Store,
        opened: Opened,
        cache_dir: Path | None,
        limits: IndexLimits,
        trust: HostTrust = DEFAULT_TRUST,
        problems: tuple[str, ...] = (),
    ) -> None:
        keys, config = opened.keys, opened.config
        self.store = store
        self.keyring = Keyring(store, opened)
        self._problems = problems
        self.id = config.repository_id
        self._sealer = Sealer(keys, config.repository_id, trust.host_key)
        self.hasher = BlockHasher(self._sealer.block_id_key(), self._sealer.leaf_digest_key())
        self.packs = PackReader(store, self._sealer)
        self.checks = Checks(store, self._sealer, self.hasher)
        self.leases = Leases(store, self._sealer)
        local = open_local(
            cache_dir, self.id, self._sealer, self.packs, self.hasher, limits, trust.rule
        )
        self.tables, self.trust, self._index = local.tables, local.trust, local.index
        self._fingerprints = local.fingerprints
        self.drills = Drills(store, self._sealer, local.drills)
        self.catalog = Catalog(store, self._sealer, self.packs, self._index)

    @staticmethod
    def create(
        store: Store,
        passphrase: bytes,
        cache_dir: Path | None = None,
        limits: IndexLimits = DEFAULT_LIMITS,
        about: About = UNNAMED,
        trust: HostTrust = DEFAULT_TRUST,
    ) -> Repository:
        """Make a new repository. Raises ``RepositoryError`` where there is one already.

        The key slot is written first. A crash leaves a slot without ``drvm.json``; ``create``
        with the same passphrase then writes the copy that the slot holds, and nothing else: so
        it also puts back a ``drvm.json`` that was lost.
        """
        if not passphrase:
            raise UsageError("the passphrase is empty")
        with contextlib.suppress(ObjectMissing):
            store.head(CONFIG)
            raise _exists(store)
        if slots := read_slots(store):
            opened = open_slots(passphrase, slots, None)
            protocol.create_once(store, CONFIG, opened.config.encode())
            return Repository(store, opened, cache_dir, limits, trust)
        if any(True for prefix in (PACKS, POINTS) for _ in store.list(prefix)):
            raise RepositoryError(
                f"{store.location} holds packs or points, but {CONFIG} and all key slots are lost",
                hint="drvm key import makes both of the paper form; or put back an object of "
                f"{KEYS} if there is a copy",
            )
        config = RepositoryConfig(FORMAT_VERSION, secrets.token_hex(16), ())
        made = new_slot(store, MasterKeys.generate(), config, passphrase, about)
        try:
            protocol.create_once(store, CONFIG, config.encode())
        except ObjectExists:
            with contextlib.suppress(StoreRefused):  # a writer may not: the slot opens nothing here
                store.delete(made.slot)
            raise _exists(store) from None
        return Repository(store, made, cache_dir, limits, trust)

    @staticmethod
    def open(
        store: Store,
        passphrase: bytes,
        cache_dir: Path | None = None,
        limits: IndexLimits = DEFAULT_LIMITS,
        trust: HostTrust = DEFAULT_TRUST,
    ) -> Repository:
        """Raises ``NoRepository``, ``WrongKey``, ``UnsupportedFormat``, ``DamageFound``.

        Where ``drvm.json`` is lost or unreadable, the authenticated copy in the key slot serves;
        ``points`` then lists that as a problem.
        """
        slots = read_slots(store)
        config = None
        problems: tuple[str, ...] = ()
        try:
            config = decode_config(store.get(CONFIG))
        except (ObjectMissing, ObjectDamaged, DamageFound) as error:
            if not slots and isinstance(error, ObjectMissing):
                raise NoRepository(
                    f"there is no repository at {store.location}",
                    hint="drvm init creates one; check repository.url in the config",
                ) from None
            problems = (f"{error}; its copy in the key slot was used",)
        opened = open_slots(passphrase, slots, config)
        return Repository(store, opened, cache_dir, limits, trust, problems)

    # -- points -------------------------------------------------------------------------------
    def points(self, vm_uuid: str | None = None, remembered: Remembered | None = None) -> Listing:
        """``remembered``: what was read before is not read again. ``problems`` also tell what
        somebody overwrote or deleted, as far as it was looked at."""
        listing = protocol.list_points(self.store, self._sealer, vm_uuid, remembered)
        problems = self._problems + listing.problems + alarms_of(self.store)
        return replace(listing, problems=problems)

    def check_untouched(self) -> None:
        """Raises ``TamperingFound`` where the store keeps versions and somebody overwrote or
        deleted any object that is still there. Lists everything that is needed."""
        check_untouched(self.store, (*LOCKED, PINS))

    def current(self, point: Point) -> Point | None:
        """The point as it is now, perhaps in another generation; ``None`` where it was removed."""
        return protocol.current_point(self.store, self._sealer, point)

    def newest_point(self, vm_uuid: str, now: dt.datetime) -> Point | None:
        """See ``points.newest_point``; its cost doesn't grow with the number of points."""
        return protocol.newest_point(self.store, self._sealer, vm_uuid, now)

    def refresh(self, banned: frozenset[bytes] = frozenset()) -> None:
        """Bring the index up to date with the store.

        Packs that are condemned, banned or whose tables are damaged serve no deduplication, and
        nothing that a parent point has in them is kept. What the cache directory lacks is learnt
        from index objects, or from the packs."""
        self.catalog.refresh(banned)

    @property
    def shunned(self) -> frozenset[bytes]:
        """The packs that nothing new may rely on, by the last ``refresh``."""
        return self.catalog.shunned

    def session(
        self, *, level: int, verify: bool = True, banned: frozenset[bytes] = frozenset()
    ) -> Session:
        """Begin to write. ``refresh`` comes first: the index is as new as its last call."""
        return Session(
            self.store,
            self._sealer,
            self.hasher,
            self._index,
            level=level,
            verify=verify,
            banned=banned | self.catalog.shunned,
        )

    def find(self, ids: Ids) -> Found:
        """Where blocks of these ids are, as far as the index knows: see ``refresh``."""
        return find(self._index, ids)

    def sweep_cache(self, now: dt.datetime) -> None:
        """Remove what this host keeps of disks that it has not backed up for long."""
        if self._fingerprints is not None:
            sweep_fingerprints(self._fingerprints, now)

    def fingerprints(self, vm_uuid: str, target: str) -> Fingerprints:
        """What this host remembers of a disk, to be closed."""
        return Fingerprints(self._fingerprints, vm_uuid, target)

    def is_own(self, manifest: Manifest) -> bool:
        """Whether this host wrote it: what a name in the manifest can't prove."""
        return manifest.mark == self._mark(manifest)

    def may_build_on(self, manifest: Manifest) -> bool:
        """Whether unchanged blocks may be kept unread as the point has them."""
        return self.trust.rule == "repository" or self.is_own(manifest)

    def _mark(self, manifest: Manifest) -> str:
        return self._sealer.mark(b"point", manifest.marked()).hex()

    def commit(self, manifest: Manifest, trace: Trace = no_trace, *, own: bool = False) -> Point:
        """Make the point; ``own`` where this host itself has seen all that is in it.
        What it needs is read back from its own disk maps. Other hosts are told of the session's
        packs first; the local index is written last."""
        need = self.need(manifest)
        self.check_is_there()
        if self.catalog.share():
            trace("index-shared")
        manifest = msgspec.structs.replace(manifest, mark=self._mark(manifest) if own else None)
        point = protocol.commit(self.store, self._sealer, manifest, need, trace)
        self._index.flush()
        return point

    def need(self, manifest: Manifest) -> frozenset[bytes]:
        """Every pack that the point needs, shared subtrees included."""
        need = {blob.ref().pack for blob in manifest.blobs()}
        for disk in manifest.streams:
            need |= self.disk_map(disk).packs()
        return frozenset(need)

    @property
    def generations(self) -> Generations:
        return Generations(self.store, self._sealer, self.packs)

    def disk_map(self, disk: Disk) -> DiskMap:
        root = disk.root.ref() if disk.root is not None else None
        return DiskMap(self.packs.blob, root, disk.size_bytes)

    def leaf_reader(self, disk: Disk) -> LeafReader:
        return LeafReader(self.disk_map(disk), self.packs, self.hasher, self.tables)

    def blob(self, blob: StoredBlob) -> bytes:
        return self.packs.blob(blob.ref())

    def tpm_state(self, manifest: Manifest) -> dict[str, bytes]:
        """File name -> content; empty where the point holds none."""
        return {name: self.blob(blob) for name, blob in manifest.tpm.items()}

    def final_times(self) -> dict[str, tuple[dt.datetime, ...]]:
        """Point id -> when its generations were decided, good or not, by the store's time."""
        return protocol.final_times(self.store)

    def check_is_there(self) -> None:
        if not self._problems:
            protocol.check_is_there(self.store)

    def end_point(self, point: Point, trace: Trace = no_trace) -> None:
        """That one delete ends it; its packs stay until a collector finds them not needed."""
        protocol.end_point(self.store, point.manifest.vm_uuid, point.id, trace)

    def is_there(self, point: Point) -> bool:
        """Whether this generation of the point has not been ended since it was read."""
        name = point_object(point.manifest.vm_uuid, point.id, point.generation)
        return name in protocol.manifests(self.store, point.manifest.vm_uuid, point.id)

    def was_ended(self, point: Point) -> bool:
        """Whether a point of this id was good here once, and was removed."""
        return protocol.was_ended(self.store, self._sealer, point.manifest.vm_uuid, point.id)

    def locked_until(self, point: Point) -> dt.datetime | None:
        """By Object Lock, if it is: the last of its manifests. It can't end before."""
        names = protocol.manifests(self.store, point.manifest.vm_uuid, point.id)
        locks = filter(None, (retained_until(self.store, name) for name in names))
        return max(locks, default=None)

    # -- pins ---------------------------------------------------------------------------------
    def pins(self) -> dict[str, tuple[Pin, ...]]:
        """Point id -> its pins."""
        return pins.list_pins(self.store, self._sealer)

    def is_pinned(self, point_id: str) -> bool:
        return pins.is_pinned(self.store, point_id)

    def pin(self, point: Point, pin: Pin, trace: Trace = no_trace, nonce: str = "") -> None:
        """Raises ``UnknownPoint`` where the point was removed in the same moment."""
        name = pins.create_pin(self.store, self._sealer, point.id, pin, trace, nonce)
        if not protocol.manifests(self.store, point.manifest.vm_uuid, point.id):
            with contextlib.suppress(StoreRefused):  # a pin of nothing is harmless
                self.store.delete(name)
            raise UnknownPoint(f"point {point.id} was removed meanwhile", hint="drvm points")

    def unpin(self, point_id: str, trace: Trace = no_trace, nonce: str = "") -> int:
        """All of a point's, or that of ``nonce``; how many pins there were."""
        return pins.delete_pins(self.store, point_id, trace, nonce)


def _exists(store: Store) -> RepositoryError:
    return RepositoryError(
        f"there is a repository at {store.location} already",
        hint="use it as it is, or choose another place",
    )
