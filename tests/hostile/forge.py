"""Somebody who holds the keys of a repository, and lies: well sealed objects of any content.

Each ``Forge`` begins with a small honest repository of its own (one point of ``HONEST``), and what
it adds is of the machine ``LIAR``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from drvm.core.clock import rfc3339
from drvm.core.ids import is_point_id, new_generation, new_point_id
from drvm.repository import crypto, pack
from drvm.repository.layout import (
    FORMAT_VERSION,
    check_object,
    final_object,
    index_object,
    pack_object,
    pin_object,
    point_object,
)
from drvm.repository.manifest import digest
from drvm.store.memory import MemoryStore

HONEST = "11111111-2222-4333-8444-555555555555"
LIAR = "66666666-7777-4888-8999-aaaaaaaaaaaa"
BLOCK = 4096
LEAF = 64 << 20
MOMENT = rfc3339(dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
DOMAIN = (
    "<domain type='kvm'><name>x</name><uuid>4dea22b3-1d52-48f3-a516-782e98ab3fa0</uuid>"
    "<memory>65536</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
    "<disk type='file' device='disk'><source file='/orig/a'/><target dev='vda' bus='virtio'/>"
    "</disk></devices></domain>"
)


class Raw(str):
    """A piece of JSON as it is to stand there, also where it is none."""


def as_json(value: Any) -> bytes:
    """With every ``Raw`` as it is."""
    if isinstance(value, Raw):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, Mapping):
        pairs = (as_json(name) + b":" + as_json(inner) for name, inner in value.items())
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(as_json, value)) + b"]"
    return json.dumps(value).encode()


class Forge:
    """``store`` is what the reader gets. ``keys`` are the true ones."""

    def __init__(self, honest: MemoryStore, keys: crypto.MasterKeys, repository_id: str) -> None:
        self.store = MemoryStore()
        self.store.objects = dict(honest.objects)
        self.keys = keys
        self.sealer = crypto.Sealer(keys, repository_id)
        self.id = repository_id

    # -- objects ------------------------------------------------------------------------------
    def put(self, name: str, data: bytes) -> str:
        """Past the checks of the store, whose size limit is one of those under test elsewhere."""
        self.store.objects[name] = (data, dt.datetime.now(dt.UTC))
        return name

    def seal(self, purpose: bytes, name: str, plain: bytes) -> str:
        return self.put(name, self.sealer.seal_object(purpose, name, plain))

    def seal_packed(self, purpose: bytes, name: str, length: int, frame: bytes) -> str:
        """A sealed object that claims ``length`` bytes and holds ``frame``."""
        salt = secrets.token_bytes(32)
        packed = struct.pack("<I", length) + frame
        body = self.sealer.cipher(purpose, salt).seal(0, 0, packed, name.encode())
        return self.put(name, struct.pack("<8sH", b"drvmseal", FORMAT_VERSION) + salt + body)

    def pin(self, plain: bytes, point_id: str = "0" * 16) -> str:
        return self.seal(b"pin", pin_object(point_id, secrets.token_hex(8)), plain)

    def check(self, plain: bytes) -> str:
        return self.seal(b"check", check_object(secrets.token_hex(8)), plain)

    def index(self, plain: bytes) -> str:
        return self.seal(b"index", index_object(secrets.token_bytes(32)), plain)

    def drill(self, plain: bytes) -> str:
        return self.seal(b"drill", f"drills/{LIAR}/{secrets.token_hex(8)}", plain)

    # -- points -------------------------------------------------------------------------------
    def manifest(self, **changes: Any) -> dict[str, Any]:
        """What would be a good one but for the changes; ``None`` stands for ``null``."""
        fields: dict[str, Any] = {
            "format_version": 0,
            "id": new_point_id(),
            "vm": "liar",
            "vm_uuid": LIAR,
            "created": MOMENT,
            "finished": MOMENT,
            "consistency": "offline",
            "engine": "test",
            "host": "there",
            "drvm_version": "0",
        }
        return fields | changes

    def point(self, **changes: Any) -> str:
        """A good point, as far as its final goes; returns its id."""
        fields = self.manifest(**changes)
        return self.point_of(as_json(fields), fields["id"])

    def point_of(self, plain: bytes, point_id: Any = None, final: bytes | None = None) -> str:
        """A manifest of these bytes, under a proper name, and its final, or ``final``."""
        proper = isinstance(point_id, str) and is_point_id(point_id)
        named = point_id if proper else new_point_id()
        generation = new_generation()
        name = self.seal(b"point", point_object(LIAR, named, generation), plain)
        sealed = self.store.objects[name][0]
        told = as_json({"status": "ok", "manifest_sha256": digest(sealed)})
        self.seal(b"final", final_object(named, generation), told if final is None else final)
        return named

    def disk(self, size: int, root: Any, target: Any = "vda", **changes: Any) -> dict[str, Any]:
        return {
            "target": target,
            "size_bytes": size,
            "format": "raw",
            "method": "full-read",
            "read_bytes": 0,
            "new_bytes": 0,
            "stored_bytes": 0,
            "root": root,
        } | changes

    def blob(self, plain: bytes) -> dict[str, Any]:
        return {"pack": self.meta([plain]).hex(), "number": 0}

    # -- packs --------------------------------------------------------------------------------
    def meta(self, blobs: Sequence[bytes]) -> bytes:
        """A metadata pack; its name."""
        return self.frames("meta", [(0, blob, len(blob)) for blob in blobs])

    def data(self, blocks: int, fill: bytes = b"x") -> bytes:
        """A data pack of one frame."""
        plain = fill * BLOCK * blocks
        return self.frames("data", [(0, plain, len(plain))], ids=bytes(16 * blocks))

    def frames(
        self,
        kind: str,
        frames: Sequence[tuple[int, bytes, int]],
        /,
        *,
        ids: bytes = b"",
        table: bytes | None = None,
        sealed_table: bytes | None = None,
        **footer: int,
    ) -> bytes:
        """A pack of frames (codec, payload, plain bytes as claimed). ``table``: the frame table as
        compressed, if another; ``sealed_table``: in place of what is sealed. ``footer``: fields
        ``kind``, ``version``, ``body``, ``ids_bytes``, ``tables`` that lie."""
        salt = secrets.token_bytes(32)
        cipher = self.sealer.cipher(b"pack-" + kind.encode(), salt)
        sealed = [cipher.seal(0, n, payload) for n, (_, payload, _) in enumerate(frames)]
        body = b"".join(sealed)
        if table is None:
            columns = ([len(s) for s in sealed], [f[2] for f in frames], [f[0] for f in frames])
            table = zstandard.compress(frame_table(*columns))
        own_table = cipher.seal(2, 0, table) if sealed_table is None else sealed_table
        tables = cipher.seal(1, 0, ids), own_table
        end = pack._FOOTER.pack(
            b"drvmpack",
            footer.get("version", FORMAT_VERSION),
            footer.get("kind", 1 if kind == "data" else 2),
            salt,
            footer.get("body", len(body)),
            footer.get("ids_bytes", len(tables[0])),
            footer.get("tables", len(tables[1])),
            bytes(32) if "sums" in footer else pack.blake3(body).digest(),
            hashlib.sha256(b"".join(tables)).digest(),
            bytes(16),
        )
        name = hashlib.sha256(end).digest()
        self.put(pack_object(name), body + b"".join(tables) + end)
        return name

    # -- disk maps ----------------------------------------------------------------------------
    def mapped(self, blobs: Sequence[bytes], size: int = LEAF, root: int = -1) -> str:
        """A point with a disk whose map is these blobs of one pack; the last is the root."""
        name = self.meta(blobs)
        place = len(blobs) + root if root < 0 else root
        return self.point(disks=[self.disk(size, {"pack": name.hex(), "number": place})])


def frame_table(stored: Sequence[int], plain: Sequence[int], codec: Sequence[int]) -> bytes:
    count = len(stored)
    return struct.pack(f"<I{3 * count}I", count, *stored, *plain, *codec)


def leaf(
    runs: Sequence[tuple[int, int, int, int]], first: Sequence[int] = (0,), /, **lies: int
) -> bytes:
    """(gap, pack, count - 1, zigzag step) of each run; all packs not ``placed``."""
    lengths = (lies.get("packs", len(first)), lies.get("runs", len(runs)))
    gap, owner, count, step = zip(*runs, strict=True) if runs else ((), (), (), ())
    return b"".join(
        (
            struct.pack("<II", *lengths),
            bytes([lies.get("placed", 0)]) * len(first),
            _planes(first, 4),
            _planes(gap, 2),
            _planes(owner, 2),
            _planes(count, 2),
            _planes(step, 4),
        )
    )


def node(
    level: int,
    places: int,
    owners: Mapping[int, tuple[int, int]],
    /,
    *,
    names: Sequence[bytes] = (),
    needs: Mapping[bytes, int] | Sequence[tuple[bytes, int]] = (),
    digests: int | None = None,
    **lies: int,
) -> bytes:
    """``owners``: place -> (owner, number); ``needs``: pack -> bitmap, in any order."""
    needed = list(needs.items() if isinstance(needs, Mapping) else needs)
    present = len(owners) if digests is None else digests
    header = (
        lies.get("level", level),
        lies.get("places", places - 1) & 0xFF,
        lies.get("tables", len(names)),
        lies.get("needed", len(needed)),
    )
    return b"".join(
        (
            struct.pack("<BBHI", *header),
            *names,
            struct.pack(f"<{places}H", *(owners.get(at, (0, 0))[0] for at in range(places))),
            struct.pack(f"<{places}I", *(owners.get(at, (0, 0))[1] for at in range(places))),
            bytes(16 * present if level == 1 else 0),
            *(name for name, _ in needed),
            *(struct.pack("<I", bitmap) for _, bitmap in needed),
        )
    )


def _planes(values: Sequence[int], width: int) -> bytes:
    whole = [value.to_bytes(width, "little") for value in values]
    return b"".join(bytes(entry[plane] for entry in whole) for plane in range(width))
