"""One file for a machine: an OVA, which is a tar archive of its description and disks."""

from __future__ import annotations

import datetime as dt
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from drvm.core.progress import Progress
from drvm.host.images import Part

_USTAR_BYTES = 1 << 33
_USTAR_NAME_BYTES = 100
"""What its headers can say; of larger members, and longer names, only GNU's can."""
_MODE = 0o644


def write_archive(
    path: Path,
    texts: Mapping[str, bytes],
    files: Mapping[str, Path],
    made: dt.datetime,
    progress: Progress,
) -> dict[str, Part]:
    """Fill the empty file ``path``: ``texts`` first, then ``files``, by their names inside, as
    DSP0243 has them in order; all are as old as ``made``. Returns where the files are in it.
    Raises ``OSError``."""
    mtime_s = int(made.timestamp())
    large = any(file.stat().st_size >= _USTAR_BYTES for file in files.values())
    named = any(len(name.encode()) > _USTAR_NAME_BYTES for name in (*texts, *files))
    kind = tarfile.GNU_FORMAT if large or named else tarfile.USTAR_FORMAT
    found: dict[str, Part] = {}
    with path.open("r+b") as sink, tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, text in texts.items():
            archive.addfile(_member(name, len(text), mtime_s), io.BytesIO(text))
        for name, file in files.items():
            member = _member(name, file.stat().st_size, mtime_s)
            with file.open("rb") as source:
                archive.addfile(member, source)
            found[name] = Part(sink.tell() - -(-member.size // 512) * 512, member.size)
            progress.advance(member.size)
    return found


def _member(name: str, size_bytes: int, mtime_s: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size_bytes, mtime_s, _MODE
    return member
