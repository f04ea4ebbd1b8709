"""From the wiring to the server of a point's disks, and back again on the server's side."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from drvm.config.settings import RepositorySettings, Settings, resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import UnknownPoint, UsageError
from drvm.core.process import SystemProcesses
from drvm.repository.points import Point
from drvm.restore.served.disk import ServedDisk
from drvm.restore.served.frames import Frames
from drvm.restore.served.order import hear_order
from drvm.restore.served.patience import Patience
from drvm.restore.served.server import Service
from drvm.wiring.assembly import Wiring

_PATIENCE_S = 60.0
"""Then the guest's disk has an error; what the store repeats by itself comes on top."""
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
    state_dir: str
    cache_dir: str
    id_cache_bytes: int
    as_of: str | None
    passphrase: str
    environ: dict[str, str]
    vm_uuid: str
    point: str
    disks: tuple[str, ...]


def service_of(wiring: Wiring, point: Point, disks: Iterable[str] | None = None) -> Service:
    """What ``serving`` and ``start_server`` take: these disks of the point, or all.

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
    )
    return Service(_PLUGIN, msgspec.json.encode(order), point.id, tuple(wanted))


@dataclass(frozen=True, slots=True)
class Serving:
    """The server's side: disks by target."""

    disks: dict[str, ServedDisk]
    wiring: Wiring
    frames: Frames

    def close(self) -> None:
        self.frames.close()
        self.wiring.__exit__()


def open_order(stream: BinaryIO, tell: Callable[[str], None]) -> Serving:
    """Read the order and open the repository, as the command line does. The environment of this
    process becomes what the order says. Raises what opening raises."""
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
            patience = Patience(wiring.clock, _PATIENCE_S, tell)
            frames = Frames(repository.packs, repository.hasher, patience)
            found = {
                disk.target: ServedDisk(
                    repository.disk_map(disk),
                    frames,
                    repository.hasher,
                    repository.tables,
                    patience,
                )
                for disk in point.manifest.disks
                if disk.target in order.disks
            }
            return Serving(found, wiring, frames)
    raise UnknownPoint(f"point {order.point} is not there any more", hint="drvm points")


def _settings(order: _Order) -> Settings:
    return dataclasses.replace(
        resolve(None, {}),
        repository=RepositorySettings(
            order.url,
            order.endpoint,
            order.region,
            download_mib_s=order.download_mib_s,
            profile=order.profile,
        ),
        state_dir=Path(order.state_dir),
        cache_dir=Path(order.cache_dir),
        id_cache_bytes=order.id_cache_bytes,
        as_of=dt.datetime.fromisoformat(order.as_of) if order.as_of is not None else None,
    )
