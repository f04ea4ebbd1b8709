"""Settings -> concrete objects. The only place that knows them all."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

from drvm.chunker.frames import LEVELS
from drvm.config.policies import PolicyConfig
from drvm.config.settings import HourlyLimits, RepositorySettings, Settings
from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import CaptureError, HostUnreachable, UnknownVm, UsageError
from drvm.core.pace import Bandwidth
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.drill.place import DEFAULT_DIRECTORY, remembered
from drvm.host.images import ImageTool
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain, DomainState, Host
from drvm.repository.index.sparse import IndexLimits
from drvm.repository.keys import About
from drvm.repository.layout import CONFIG, KEYS, LOCKED, LOOSE
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.repository.trust import HostTrust
from drvm.restore.export.run import Exporter
from drvm.restore.machine.source import parse
from drvm.restore.plan import RestorePlan
from drvm.restore.sysprep import run_sysprep
from drvm.restore.targets.block_device import DeviceRestorer
from drvm.restore.targets.images import ImageRestorer
from drvm.restore.targets.volumes import VolumeRestorer
from drvm.schedule.windows import parse_window
from drvm.snapshot.journal import Journal
from drvm.snapshot.parts import Parts
from drvm.store.base import Store
from drvm.store.first_versions import first_versions
from drvm.store.history import LockRule
from drvm.store.urls import open_store, parse_address
from drvm.wiring.identity import host_key
from drvm.wiring.whereabouts import HINT, Whereabouts, read


class Wiring:
    """What one invocation of drvm works with; made when first asked for, closed at the end.

    ``passphrase`` is asked for once, when it is needed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        processes: Processes,
        passphrase: Callable[[], bytes],
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.processes = processes
        self._ask = passphrase
        self._told: bytes | None = None
        self._stack = ExitStack()
        self._repository: Repository | None = None
        self._hosts: dict[str, LibvirtHost] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def another(self) -> Wiring:
        """The same settings, with connections of its own: for a thread."""
        return Wiring(
            self.settings,
            clock=self.clock,
            processes=self.processes,
            passphrase=self.passphrase,
        )

    def passphrase(self) -> bytes:
        """Asked for once."""
        if self._told is None:
            self._told = self._ask()
        return self._told

    @property
    def writer(self) -> str:
        """The name under which points and drills of this machine are written."""
        return socket.gethostname()

    @property
    def level(self) -> int:
        return LEVELS[self.settings.compression]

    def store(self, *, create: bool = False) -> Store:
        """As its writers left it, where it keeps versions. Raises the store's errors."""
        named = self.settings.needed_repository()
        store = open_store(
            parse_address(named.url),
            endpoint=named.endpoint,
            region=named.region,
            profile=named.profile,
            create=create,
            clock=self.clock,
            limits=_limits(named, cast(Hashable, self.clock)),
            lock=self.lock_rule,
        )
        self._stack.callback(store.close)
        return first_versions(store, loose=LOOSE, as_of=self.settings.as_of, always=(CONFIG, KEYS))

    @property
    def lock_rule(self) -> LockRule | None:
        lock = self.settings.needed_repository().object_lock
        return LockRule(lock.mode, lock.days, LOCKED) if lock is not None else None

    def repository(self) -> Repository:
        """Raises ``NoRepository``, ``WrongKey`` and the store's errors."""
        if self._repository is None:
            store = self.store()
            cache_dir = self.cache_dir if self.settings.as_of is None else None
            self._repository = Repository.open(
                store, self.passphrase(), cache_dir, self.index_limits, self._trust()
            )
        return self._repository

    def create_repository(self) -> Repository:
        store = self.store(create=True)
        about, limits = self.about_slot(""), self.index_limits
        passphrase, trust = self.passphrase(), self._trust()
        return Repository.create(store, passphrase, self.cache_dir, limits, about, trust)

    def _trust(self) -> HostTrust:
        return HostTrust(self.settings.dedup_trust, host_key(Path(self.settings.state_dir)))

    def about_slot(self, label: str) -> About:
        """What a key slot that is made now and here says of itself."""
        return About(label, rfc3339(self.clock.now()), self.writer)

    @property
    def index_limits(self) -> IndexLimits:
        return IndexLimits(self.settings.index_memory_bytes, self.settings.id_cache_bytes)

    @property
    def cache_dir(self) -> Path:
        return Path(self.settings.cache_dir)

    def host(self, uri: str | None = None) -> Host:
        """The first host of the settings, or the one named. Raises ``HostUnreachable``."""
        uri = uri or self.settings.host_uris[0]
        if uri not in self._hosts:
            self._hosts[uri] = LibvirtHost(uri)
            self._stack.callback(self._hosts[uri].close)
        return self._hosts[uri]

    def hosts(self) -> list[Host]:
        return [self.host(uri) for uri in self.settings.host_uris]

    def local_host(self) -> Host:
        """The host of the settings, which must be this machine: images are written as files.

        Raises ``UsageError`` for a remote one.
        """
        uri = self.settings.host_uris[0]
        if urlsplit(uri).netloc:
            raise UsageError(
                f"{uri} is another machine, and this needs drvm on the KVM host itself",
                hint="run it there, with the same repository; from here, drvm restore --to URI "
                "makes the machine there, also with --replace",
            )
        return self.host(uri)

    def find(self, vm: str, uri: str | None = None) -> tuple[Host, Domain]:
        """The VM on whichever host has it, or on the one named: where it runs, else where it was
        last seen. Raises ``UnknownVm``, ``HostUnreachable`` where a host that does not answer may
        have it, and ``CaptureError`` where that may have the VM itself, and this only what a move
        left behind."""
        uris = self.settings.host_uris if uri is None else (uri,)
        away: dict[str, HostUnreachable] = {}
        found: list[tuple[Host, Domain]] = []
        for host in map(self.host, uris):
            try:
                domain = host.find_domain(vm if not found else found[0][1].uuid)
            except HostUnreachable as error:
                away[host.uri] = error
                continue
            if domain is not None:
                if _is_on(domain):
                    return host, domain
                found.append((host, domain))
        if found:
            return self._likeliest(found, list(away))
        if away:
            raise next(iter(away.values()))
        where = ", ".join(uris)
        raise UnknownVm(f"there is no VM {vm!r} on {where}", hint="drvm vms lists them")

    def _likeliest(
        self, found: Sequence[tuple[Host, Domain]], away: Sequence[str]
    ) -> tuple[Host, Domain]:
        """Of those that have the UUID, and are off."""
        known = self.whereabouts()
        host, domain = min(found, key=lambda one: not known.last_seen(one[1].uuid, one[0].uri))

        def newest() -> Manifest | None:
            point = self.repository().newest_point(domain.uuid, self.clock.now())
            return point.manifest if point is not None else None

        if held := known.held(domain.uuid, host.uri, away, newest):
            raise CaptureError(f"{domain.name} is held: {held}", hint=HINT)
        return host, domain

    def whereabouts(self) -> Whereabouts:
        """Of machines, as far as this host knows."""
        known = read(Path(self.settings.state_dir))
        return Whereabouts(known, lambda manifest: self.repository().is_own(manifest))

    def restorer(self, trace: Trace = no_trace) -> ImageRestorer:
        return ImageRestorer(self.repository(), self.processes, self.clock, trace)

    def exporter(self, trace: Trace = no_trace) -> Exporter:
        repository, restorer = self.repository(), self.restorer(trace)
        return Exporter(repository, restorer, self.processes, self.clock, trace)

    def device_restorer(self, trace: Trace = no_trace) -> DeviceRestorer:
        return DeviceRestorer(self.repository(), trace)

    def volume_restorer(self, host: Host, *, verify: bool = False) -> VolumeRestorer:
        return VolumeRestorer(self.repository(), host.storage, self.clock, verify=verify)

    def sysprep(self, plan: RestorePlan) -> None:
        """Its operations on its image files. Without KVM where the machine itself is."""
        files = [(image.path, image.format) for image in plan.images]
        emulated = parse(plan.definition.xml).get("type") == "qemu"
        run_sysprep(self.processes, plan.sysprep, files, emulated=emulated)

    def image_tool(self) -> ImageTool:
        return ImageTool(self.processes)

    def parts(
        self, host: Host, trace: Trace = no_trace, heed: Callable[[], None] = lambda: None
    ) -> Parts:
        """What capture and recovery on ``host`` work with. ``heed``: as ``Parts`` has it."""
        overlay_dir = self.settings.overlay_dir
        return Parts(
            host=host,
            images=self.image_tool(),
            processes=self.processes,
            journal=Journal(Path(self.settings.state_dir)),
            clock=self.clock,
            trace=trace,
            heed=heed,
            overlay_dir=Path(overlay_dir) if overlay_dir is not None else None,
            overlay_reserve_bytes=self.settings.overlay_reserve_bytes,
        )

    def drill_directory(self, policy: PolicyConfig | None = None) -> Path:
        """Where the images of a drill go: QEMU's user must be able to reach it."""
        chosen = policy.drill.directory if policy is not None and policy.drill else None
        return Path(chosen) if chosen is not None else DEFAULT_DIRECTORY

    def drill_directories(self) -> list[Path]:
        """All that drills of this config, or of earlier ones, may have used."""
        chosen = {self.drill_directory(policy) for policy in self.settings.policies}
        return sorted(chosen | remembered(self.drill_notes) | {DEFAULT_DIRECTORY, self.drill_notes})

    @property
    def drill_notes(self) -> Path:
        """Where drills on other hosts are known by."""
        return Path(self.settings.state_dir) / "drills"

    def report_path(self, drill_id: str) -> Path:
        """Where the page of a drill goes if nobody says."""
        return Path(self.settings.state_dir) / "reports" / f"drill-{drill_id}.html"


def _is_on(domain: Domain) -> bool:
    return domain.state() in (DomainState.RUNNING, DomainState.PAUSED)


@functools.lru_cache(maxsize=16)
def _limits(named: RepositorySettings, clock: Clock) -> Bandwidth:
    """One for all jobs of a process that go to one place: a daemon's run in parallel."""
    hourly = [(parse_window(one.when), one) for one in named.at_times]
    if not hourly:
        return Bandwidth.of(named.upload_mib_s, named.download_mib_s, clock)

    def now() -> HourlyLimits | None:
        moment = clock.now()
        return next((one for window, one in hourly if window.holds(named.time_zone, moment)), None)

    def upload() -> int:
        one = now()
        chosen = one.upload_mib_s if one is not None else None
        return named.upload_mib_s if chosen is None else chosen

    def download() -> int:
        one = now()
        chosen = one.download_mib_s if one is not None else None
        return named.download_mib_s if chosen is None else chosen

    return Bandwidth.of(upload, download, clock)
