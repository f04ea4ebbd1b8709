"""A capture of a machine that stands still: files that nobody writes to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.extents import Extent
from drvm.host.rawfile import RawFileReader, raw_extents
from drvm.snapshot.capture import CaptureRequest, FrozenMachine


@dataclass(frozen=True)
class StillDisk:
    """Implements ``FrozenDisk``. ``path`` is raw, whatever ``format`` it is said to be."""

    target: str
    path: Path
    format: str = "raw"
    method: str = "full-read"
    image_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def extents(self) -> Iterator[Extent]:
        return raw_extents(self.path, self.size_bytes)

    def open(self) -> RawFileReader:
        return RawFileReader(self.path, self.size_bytes)


@dataclass(frozen=True)
class StillEngine:
    """Implements ``Engine``."""

    machine: FrozenMachine
    name: str = "still"

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        yield self.machine
