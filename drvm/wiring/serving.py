"""From the wiring to the server of a point's disks, and back again on the server's side."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from drvm.config.settings import HourlyLimits, RepositorySettings, Settings, resolve
from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import DrvmError, UnknownPoint, UsageError
from drvm.core.process import SystemProcesses
from drvm.repository.diskmap import DiskMap
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.restore.served.disk import Renew, ServedDisk
from drvm.restore.served.frames import Frames
from drvm.restore.served.hints import Recorder, read_hint, write_hint
from drvm.restore.served.order import hear_order
from drvm.restore.served.patience import Patience
from drvm.restore.served.server import Service
from drvm.wiring.assembly import Wiring

_PATIENCE_S = 60.0
"""Then the guest's disk has an error; what the store repeats by itself comes on top."""
_LOOK_AGAIN_S = 60.0
_PLUGIN = Path(__file__).with_name("nbd_plugin.py")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_PASSED_ON = ("HOME", *_PROXIES)
"""What the AWS SDK looks at, besides all that begins with ``AWS_``."""


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server is told. It holds secrets: it goes through a pipe and nowhere else."""

    url: str
    endpoint: str | None
    region: str | None
    profile: str | None
    download_mib_s: int
    at_times: tuple[HourlyLimits, ...]
    time_zone: str
    state_dir: str
    cache_dir: str
    id_cache_bytes: int
    as_of: str | None
    passphrase: str
    environ: dict[str, str]
    vm_uuid: str
    point: str
    disks: tuple[str, ...]
    boot: bool


def service_of(
    wiring: Wiring, point: Point, disks: Iterable[str] | None = None, *, boot: bool = False
) -> Service:
    """What ``serving`` and ``start_server`` take: these disks of the point, or all. ``boot``: a
    machine will boot from them, so what the last boot read is fetched at once, and what this one
    reads is noted for the next.

    Raises ``UsageError`` for a disk that the point does not have.
    """
    settings, named = wiring.settings, wiring.settings.needed_repository()
    there = [disk.target for disk in point.manifest.disks]
    wanted = there if disks is None else [target for target in there if target in set(disks)]
    if absent := sorted(set(disks or ()) - set(there)):
        raise UsageError(
            f"point {point.id} has no disk {', '.join(absent)}", hint=f"it has {', '.join(there)}"
        )
    order = _Order(
        url=named.url,
        endpoint=named.endpoint,
        region=named.region,
        profile=named.profile,
        download_mib_s=named.download_mib_s,
        at_times=named.at_times,
        time_zone=named.time_zone,
        state_dir=str(settings.state_dir),
        cache_dir=str(settings.cache_dir),
        id_cache_bytes=settings.id_cache_bytes,
        as_of=settings.as_of.isoformat() if settings.as_of is not None else None,
        passphrase=base64.b64encode(wiring.passphrase()).decode(),
        environ={
            name: value
            for name, value in os.environ.items()
            if name.startswith("AWS_") or name in _PASSED_ON
        },
        vm_uuid=point.manifest.vm_uuid,
        point=point.id,
        disks=tuple(wanted),
        boot=boot,
    )
    return Service(_PLUGIN, msgspec.json.encode(order), point.id, tuple(wanted))


@dataclass(frozen=True, slots=True)
class Serving:
    """The server's side: disks by target. ``hints``: what the machine's last boot read of them."""

    disks: dict[str, ServedDisk]
    wiring: Wiring
    frames: Frames
    recorders: tuple[Recorder, ...]
    hints: dict[str, list[int]]

    def begin(self) -> None:
        """Fetch what the hints name, by threads; before, none of ours runs."""
        for target, units in self.hints.items():
            self.disks[target].prepare(units)

    def close(self) -> None:
        for recorder in self.recorders:
            recorder.end()
        self.frames.close()
        self.wiring.__exit__()


def open_order(stream: BinaryIO, tell: Callable[[str], None]) -> Serving:
    """Read the order and open the repository, as the command line does. The environment of this
    process becomes what the order says. No thread goes on with anything afterwards: see ``begin``.
    Raises what opening raises."""
    order = msgspec.json.decode(hear_order(stream), type=_Order)
    os.environ.update(order.environ)
    wiring = Wiring(
        _settings(order),
        clock=SystemClock(),
        processes=SystemProcesses(),
        passphrase=lambda: base64.b64decode(order.passphrase),
    )
    repository = wiring.repository()
    for point in repository.points(order.vm_uuid).points:
        if point.id == order.point:
            return _served(order, wiring, repository, point.manifest, tell)
    raise UnknownPoint(f"point {order.point} is not there any more", hint="drvm points")


def _served(
    order: _Order,
    wiring: Wiring,
    repository: Repository,
    manifest: Manifest,
    tell: Callable[[str], None],
) -> Serving:
    patience = Patience(wiring.clock, _PATIENCE_S, tell)
    frames = Frames(repository.packs, repository.hasher, patience)
    found, recorders, hints = {}, [], {}
    for disk in manifest.disks:
        if disk.target not in order.disks:
            continue
        hint = wiring.cache_dir / repository.id / "boots" / f"{order.vm_uuid}.{disk.target}"
        recorder = Recorder(wiring.clock, partial(write_hint, hint)) if order.boot else None
        found[disk.target] = ServedDisk(
            repository.disk_map(disk),
            frames,
            repository.hasher,
            repository.tables,
            patience,
            recorder,
            _renewal(repository, order, disk, patience, wiring.clock),
        )
        if recorder is not None:
            recorders.append(recorder)
            hints[disk.target] = read_hint(hint, disk.size_bytes)
    return Serving(found, wiring, frames, tuple(recorders), hints)


def _renewal(
    repository: Repository, order: _Order, disk: Disk, patience: Patience, clock: Clock
) -> Renew:
    """A collector may write the point anew and remove its old packs while it is served: then it is
    read from where it is now. Looked for once a minute, at most."""
    root, again_s = disk.root, clock.monotonic_s()

    def renew() -> DiskMap | None:
        nonlocal root, again_s
        if clock.monotonic_s() < again_s:
            return None
        again_s = clock.monotonic_s() + _LOOK_AGAIN_S
        with contextlib.suppress(DrvmError):
            listed = patience.ask(lambda: repository.points(order.vm_uuid)).points
            now = (d for point in listed if point.id == order.point for d in point.manifest.disks)
            for one in now:
                if one.target == disk.target and one.root != root:
                    root = one.root
                    return repository.disk_map(one)
        return None

    return renew


def _settings(order: _Order) -> Settings:
    return dataclasses.replace(
        resolve(None, {}),
        repository=RepositorySettings(
            order.url,
            order.endpoint,
            order.region,
            download_mib_s=order.download_mib_s,
            profile=order.profile,
            at_times=order.at_times,
            time_zone=order.time_zone,
        ),
        state_dir=Path(order.state_dir),
        cache_dir=Path(order.cache_dir),
        id_cache_bytes=order.id_cache_bytes,
        as_of=dt.datetime.fromisoformat(order.as_of) if order.as_of is not None else None,
    )
