"""Images and the disks in them, as drvm reads and writes them beside libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A persistent dirty bitmap as it is *stored* in a qcow2.

    ``flags``: ``auto`` means that it is recording, ``in-use`` that a QEMU has it open for
    writing or died with it: then what is stored is not to be believed.
    """

    name: str
    granularity_bytes: int
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image file or block device, as ``qemu-img info`` says with its format given.

    ``virtual_size_bytes`` is what the guest sees; ``allocated_bytes`` what the file takes.
    ``options``: qcow2's own, by which an image like it can be made.
    ``snapshots``: the names of its internal ones.
    """

    path: Path
    format: str
    virtual_size_bytes: int
    allocated_bytes: int
    backing_file: str | None
    backing_format: str | None
    options: Mapping[str, str]
    bitmaps: tuple[Bitmap, ...] = ()
    snapshots: tuple[str, ...] = ()


class BlockReader(Protocol):
    """Random reads of one frozen disk. Belongs to the thread that opened it."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill the whole of ``target``; the caller stays inside the disk."""
        ...

    def close(self) -> None: ...


class BlockWriter(Protocol):
    """Random writes to one disk that is being restored. Belongs to the thread that opened it.

    A new image reads as zeroes where nothing was written. ``zero`` takes no room where it can.
    """

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """Durable when it returns."""
        ...

    def close(self) -> None: ...
