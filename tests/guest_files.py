"""Points of image files, and an appliance that reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drvm.core.progress import NoProgress
from drvm.restore.guestfiles.appliance import Appliance, appliance
from drvm.restore.guestfiles.names import Place, parse_place
from drvm.restore.guestfiles.view import GuestFiles
from drvm.restore.served.supervised import serving
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring.jobs import take_image_point
from drvm.wiring.serving import service_of
from tests import appliance as installed


@dataclass(frozen=True)
class Stored:
    """``home``: drvm with the repository, whose only point is of ``web1``."""

    home: installed.Appliance
    running: Appliance
    guest: GuestFiles

    def read(self, text: str | bytes) -> bytes:
        there = place(text)
        return b"".join(self.guest.read(there, self.guest.entry(there).size_bytes))


def place(text: str | bytes) -> Place:
    return parse_place(os.fsencode(text))


def with_point(directory: Path, images: Mapping[str, Path]) -> installed.Appliance:
    """One of these raw images, which are removed: what is read is read from the repository."""
    home = installed.make_appliance(directory, f"file://{directory}/store", None)
    with home.wiring() as wiring:
        wiring.create_repository()
    with home.wiring() as wiring:
        files = [ImageFile(path, "raw") for path in images.values()]
        take_image_point(wiring, "web1", files, NoProgress())
    for image in images.values():
        image.unlink()
    return home


@contextlib.contextmanager
def stored_files(directory: Path, images: Mapping[str, Path]) -> Iterator[Stored]:
    home = with_point(directory, images)
    with home.wiring() as wiring:
        (point,) = wiring.repository().points().points
        processes, clock = wiring.processes, wiring.clock
        with serving(processes, clock, service_of(wiring, point)) as served:
            names = tuple(served.exports.values())
            with appliance(processes, clock, served.socket, names) as running:
                yield Stored(home, running, GuestFiles(running, tuple(served.exports)))
