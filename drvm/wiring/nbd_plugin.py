"""nbdkit's script: serves the disks of one point, as it is told on its standard input.

nbdkit speaks NBD and gives each request to one of its threads; all that is drvm's is below
``drvm.restore.served``. nbdkit-python-plugin(3).
"""

from __future__ import annotations

import errno
import sys

import nbdkit

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.extents import ExtentKind
from drvm.core.process import hide_memory
from drvm.restore.served.disk import ServedDisk
from drvm.restore.served.telling import Telling
from drvm.wiring.serving import Serving, open_order

API_VERSION = 2

_serving: Serving | None = None
_tell = Telling(SystemClock(), lambda line: sys.stderr.write(f"{line}\n"))
"""nbdkit's own words about each failed request are not asked for: their number has no bound."""


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config_complete() -> None:
    global _serving
    hide_memory()
    try:
        _serving = open_order(sys.stdin.buffer, _tell)
    except Exception as error:
        _tell(str(error) or type(error).__name__)
        raise


def after_fork() -> None:
    """Only now may threads work: nbdkit puts another standard input and output in the place of ours
    after ``config_complete``, and ends where a file that a thread opens takes their number."""
    assert _serving is not None
    _serving.begin()


def cleanup() -> None:
    if _serving is not None:
        _serving.close()


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    return list(_disks())


def default_export(readonly: bool, is_tls: bool) -> str:
    return next(iter(_disks()))


def open(readonly: bool) -> ServedDisk:
    """Raises for a name that is no disk of the point; the client's connection ends then."""
    name = str(nbdkit.export_name())
    disks = _disks()
    if name not in disks:
        nbdkit.set_error(errno.ENOENT)
        raise LookupError("no such disk")
    return disks[name]


def get_size(disk: ServedDisk) -> int:
    return disk.size_bytes


def can_write(disk: ServedDisk) -> bool:
    return False


def can_multi_conn(disk: ServedDisk) -> bool:
    return True


def can_extents(disk: ServedDisk) -> bool:
    return True


def pread(disk: ServedDisk, target: memoryview, offset: int, flags: int) -> None:
    try:
        disk.read_into(offset, target)
    except DrvmError as error:
        end = offset + len(target)
        _tell(f"bytes {offset} to {end} can't be read: {error.message}")
        nbdkit.set_error(errno.EIO)
        raise


def extents(disk: ServedDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    found = []
    try:
        for extent in disk.extents(offset, count):
            kind = hole if extent.kind is ExtentKind.ZERO else 0
            found.append((extent.offset, extent.length, kind))
            if flags & nbdkit.FLAG_REQ_ONE:
                break
    except DrvmError as error:
        _tell(f"the extents from {offset} on can't be told: {error.message}")
        nbdkit.set_error(errno.EIO)
        raise
    return found


def _disks() -> dict[str, ServedDisk]:
    assert _serving is not None
    return _serving.disks
