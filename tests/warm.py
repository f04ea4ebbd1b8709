"""Guests that wake up instead of booting.

Booting is what the suite's time goes to. The first guest of the lab's usual shape is saved by
libvirt once its agent answers; every other one is that memory beside copies of the disks as they
were then, under a name, a UUID and in a directory of its own. It is the same guest, a few seconds
after its boot.
"""

from __future__ import annotations

import re
import shutil
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from drvm.core.process import Processes
from drvm.lab import guest as lab

_HEADER = struct.Struct("<16s5I56x")
"""libvirt's ``virQEMUSaveHeader``: magic, version, length of the XML and cookie that follow, was
running, compressed, offset of the cookie; then unused. QEMU's stream comes after."""

_MAGIC = b"LibvirtQemudSave"
_ALIGNED = 4096


@dataclass(frozen=True)
class Saved:
    """A guest as it slept: ``directory`` holds its files, ``memory`` is libvirt's own."""

    name: str
    home: Path
    directory: Path
    memory: Path


def save(name: str, home: Path, keep: Path, processes: Processes) -> Saved:
    """Save a running guest, copy its files, and let it go on."""
    memory = keep / "memory"
    _virsh(processes, "save", name, str(memory))
    _copy(home, keep / "files", processes)
    _virsh(processes, "restore", str(memory))
    return Saved(name, home, keep / "files", memory)


def wake(saved: Saved, name: str, home: Path, definition: str, processes: Processes) -> None:
    """Another guest from the same memory: running, and defined by ``definition``."""
    own_uuid = str(uuid.uuid4())
    _copy(saved.directory, home, processes)
    memory = home / "memory"
    _write_memory(saved, memory, name, home, own_uuid)
    _virsh(processes, "restore", str(memory))
    memory.unlink()
    xml = home / "domain.xml"
    xml.write_text(definition.replace("<memory ", f"<uuid>{own_uuid}</uuid>\n  <memory ", 1))
    _virsh(processes, "define", str(xml))


def _write_memory(saved: Saved, path: Path, name: str, home: Path, own_uuid: str) -> None:
    with saved.memory.open("rb") as source, path.open("wb") as sink:
        magic, version, length, running, compressed, cookie_at = _HEADER.unpack(
            source.read(_HEADER.size)
        )
        assert (magic, version, compressed) == (_MAGIC, 2, 0)
        told = source.read(length)
        xml, cookie = told[:cookie_at].rstrip(b"\0").decode(), told[cookie_at:].rstrip(b"\0")
        xml = re.sub("<uuid>.*?</uuid>", f"<uuid>{own_uuid}</uuid>", xml, count=1)
        xml = xml.replace(str(saved.home), str(home)).replace(saved.name, name)
        head = xml.encode() + b"\0"
        data = head + cookie + b"\0"
        data += bytes(-(_HEADER.size + len(data)) % _ALIGNED)
        sink.write(_HEADER.pack(magic, version, len(data), running, compressed, len(head)))
        sink.write(data)
        shutil.copyfileobj(source, sink, 1 << 20)


def _copy(source: Path, target: Path, processes: Processes) -> None:
    target.mkdir(exist_ok=True)
    files = [str(path) for path in source.iterdir() if path.suffix in (".qcow2", ".raw", ".log")]
    argv = ["cp", "--sparse=always", "--reflink=auto", "-t", str(target), *files]
    processes.run(argv, timeout_s=60)


def _virsh(processes: Processes, *command: str) -> None:
    processes.run(["virsh", "-q", "-c", lab.URI, *command], timeout_s=60)
