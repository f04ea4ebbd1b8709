#!/usr/bin/env python3
"""Read a drvm repository without drvm: list its points and write a disk out.

    read_drvm.py REPOSITORY                         lists the points
    read_drvm.py REPOSITORY POINT WHICH OUTPUT      WHICH: a disk such as vda, definition, or nvram

REPOSITORY is a directory with the objects, such as a copy of the bucket below the prefix. The
passphrase comes from --password-file, or is asked for. POINT is an id or how one begins.

Written from docs/FORMAT.md alone (version 0), whose section each part names; it shares no code with
drvm. It needs Python 3.11 and the packages cryptography, zstandard and blake3. Every block is
verified by its id and every leaf by its digest; what is wrong ends it with the reason, and
OUTPUT keeps the name OUTPUT.partial until it is whole. It is slow and needs little memory.
"""

from __future__ import annotations

import argparse
import collections
import getpass
import hashlib
import hmac
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

BLOCK, FRAME_BLOCKS, LEAF_BLOCKS, FANOUT = 4096, 32, 16384, 32
FOOTER, MAX_OBJECT, MAX_BLOB, MAX_ORDINAL = 144, 1 << 26, 1 << 25, (1 << 31) - 1
CONSTANTS = {"format_version": 0, "features": [], "block_bytes": BLOCK, "fanout": FANOUT} | {
    "frame_blocks": FRAME_BLOCKS, "leaf_blocks": LEAF_BLOCKS}  # fmt: skip


Manifest = dict[str, Any]
Output = Callable[[int, bytes], object]


class Damage(Exception):
    """The repository is not what the format says."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise Damage(what)


class Pack(NamedTuple):
    """``frames``: offset, stored bytes, plain bytes and codec of each."""

    data: bool
    salt: bytes
    frames: list[tuple[int, int, int, int]]


def unzstd(data: bytes, limit: int) -> bytes:
    """Conventions: one frame, of at most ``limit`` bytes."""
    try:
        claimed = zstandard.get_frame_parameters(data).content_size
        need(claimed == zstandard.CONTENTSIZE_UNKNOWN or claimed <= limit, "too long a frame")
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 25)
        return reader.decompress(data, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damage(f"zstd: {error}") from None


class Keys:
    """Keys, Sealing."""

    def __init__(self, master: bytes, repository: bytes) -> None:
        self._seal, self.block_id, self._repository = master[:32], master[32:], repository
        self.leaf = self._hkdf(self.block_id, bytes(32), b"drvm leaf digest" + repository)

    @staticmethod
    def _hkdf(master: bytes, salt: bytes, info: bytes) -> bytes:
        inner = hmac.digest(salt, master, "sha256")
        return hmac.digest(inner, info + b"\1", "sha256")

    def open(self, purpose: bytes, salt: bytes, nonce: bytes, sealed: bytes, bind: bytes) -> bytes:
        key = self._hkdf(self._seal, salt, b"drvm " + purpose + b" " + self._repository)
        aad = struct.pack("<H", 0) + purpose + self._repository + salt + nonce + bind
        try:
            return AESGCM(key).decrypt(nonce, sealed, aad)
        except InvalidTag:
            raise Damage(f"a piece of {purpose.decode()} does not open") from None

    def open_object(self, purpose: bytes, name: str, data: bytes) -> bytes:
        """Sealed objects."""
        need(data[:10] == b"drvmseal\0\0" and len(data) > 42, f"{name} is no sealed object")
        plain = self.open(purpose, data[10:42], bytes(12), data[42:], name.encode())
        length = int.from_bytes(plain[:4], "little")
        inner = unzstd(plain[4:], min(length, MAX_OBJECT))
        need(len(inner) == length, f"{name} has another length")
        return inner


class Repository:
    def __init__(self, directory: Path, passphrase: bytes) -> None:
        self._directory = directory
        self._packs: dict[bytes, Pack] = {}
        self._frames: collections.OrderedDict[tuple[bytes, int], bytes] = collections.OrderedDict()
        config = json.loads(self.read("drvm.json"))
        need({name: config.get(name) for name in CONSTANTS} == CONSTANTS, "not version 0")
        self.keys = Keys(self._master(passphrase, config), bytes.fromhex(config["repository_id"]))

    def read(self, name: str) -> bytes:
        with (self._directory / name).open("rb") as stream:
            data = stream.read(MAX_OBJECT + 1)
        need(len(data) <= MAX_OBJECT, f"{name} is too long")
        return data

    def names(self, prefix: str) -> Iterator[str]:
        for path in sorted((self._directory / prefix).iterdir()):
            if not path.name.startswith("~"):
                yield f"{prefix}/{path.name}"

    def _master(self, passphrase: bytes, config: dict[str, Any]) -> bytes:
        """Key slots."""
        slots = []
        for name in self.names("keys"):
            data = self.read(name)
            if re.fullmatch("keys/[0-9a-f]{16}", name) and len(data) <= 16384:
                slots.append(json.loads(data))
        for slot in sorted(slots, key=lambda slot: int(slot["memory_kib"]) * int(slot["passes"])):
            memory, passes, lanes = slot["memory_kib"], slot["passes"], slot["lanes"]
            if not (65536 <= memory <= 1048576 and 3 <= passes <= 16 and 1 <= lanes <= 16):
                continue
            need(slot["kdf"] == "argon2id", "an unknown key derivation")
            salt = bytes.fromhex(slot["salt"])
            stretch = Argon2id(
                salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory
            )
            aead = AESGCM(stretch.derive(passphrase))
            aad = b"drvm key slot\0" + slot["config"].encode()
            try:
                master = aead.decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), aad)
            except InvalidTag:
                continue
            need(json.loads(slot["config"]) == config, "drvm.json is not that of the slot")
            need(len(master) == 64, "the slot holds no master keys")
            return master
        raise Damage("the passphrase opens no key slot")

    # -- packs ----------------------------------------------------------------------------------
    def pack(self, name: bytes) -> Pack:
        """Packs: the footer, then the frame table."""
        if name not in self._packs:
            path = self._directory / "packs" / name.hex()
            with path.open("rb") as stream:
                stream.seek(-FOOTER, os.SEEK_END)
                footer = stream.read(FOOTER)
                need(hashlib.sha256(footer).digest() == name, f"pack {name.hex()}: wrong footer")
                need(footer[:10] == b"drvmpack\0\0" and footer[10] in (1, 2), "no pack of ours")
                kind, salt = footer[10], footer[16:48]
                body, ids, table = struct.unpack_from("<QII", footer, 48)
                need(max(body, ids, table) <= MAX_OBJECT, "a pack that is too long")
                need(path.stat().st_size == body + ids + table + FOOTER, "a pack of another length")
                stream.seek(body + ids)
                sealed = stream.read(table)
            purpose = b"pack-data" if kind == 1 else b"pack-meta"
            table_plain = self.keys.open(purpose, salt, struct.pack(">IQ", 2, 0), sealed, b"")
            plain = unzstd(table_plain, 4 + 12 * 65536)
            count = int.from_bytes(plain[:4], "little")
            need(len(plain) == 4 + 12 * count, "a frame table of another length")
            columns = struct.unpack_from(f"<{3 * count}I", plain, 4)
            frames, offset = [], 0
            for number in range(count):
                stored, plain_bytes, codec = columns[number::count]
                limit = FRAME_BLOCKS * BLOCK if kind == 1 else MAX_BLOB
                need(plain_bytes <= limit and codec <= 22, "a frame table out of bounds")
                need(kind == 2 or plain_bytes % BLOCK == 0, "a frame of part of a block")
                frames.append((offset, stored, plain_bytes, codec))
                offset += stored
            need(offset <= body, "frames beyond the pack's body")
            self._packs[name] = Pack(kind == 1, salt, frames)
        return self._packs[name]

    def frame(self, name: bytes, number: int) -> bytes:
        """Frames. The last 256 stay in memory."""
        key = (name, number)
        if key not in self._frames:
            pack = self.pack(name)
            need(number < len(pack.frames), f"pack {name.hex()} has no frame {number}")
            offset, stored, plain_bytes, codec = pack.frames[number]
            with (self._directory / "packs" / name.hex()).open("rb") as stream:
                stream.seek(offset)
                sealed = stream.read(stored)
            purpose = b"pack-data" if pack.data else b"pack-meta"
            payload = self.keys.open(purpose, pack.salt, number.to_bytes(12, "big"), sealed, b"")
            plain = unzstd(payload, plain_bytes) if codec else payload
            need(len(plain) == plain_bytes, f"pack {name.hex()}: frame {number} has another length")
            self._frames[key] = plain
            if len(self._frames) > 256:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]

    def blob(self, pack: bytes, number: int) -> bytes:
        need(not self.pack(pack).data, "a blob in a data pack")
        return self.frame(pack, number)

    # -- points ---------------------------------------------------------------------------------
    def points(self) -> dict[str, Manifest]:
        """Points: the manifests of the good ones by id; of generations the youngest final's."""
        good: dict[str, tuple[float, Manifest]] = {}
        for machine in self.names("points"):
            for name in self.names(machine):
                final_name = "final/" + name.rpartition("/")[2]
                path = self._directory / final_name
                if not path.exists():
                    continue  # pending
                try:
                    sealed = self.keys.open_object(b"final", final_name, path.read_bytes())
                    final = json.loads(sealed)
                    if final["status"] != "ok":
                        continue
                    data = self.read(name)
                    digest = hashlib.sha256(data).hexdigest()
                    need(digest == final["manifest_sha256"], f"{name} is not what its final names")
                    manifest = json.loads(self.keys.open_object(b"point", name, data))
                except Damage as damage:
                    print(f"left out: {damage}", file=sys.stderr)
                    continue
                own = f"points/{manifest['vm_uuid']}/{manifest['id']}."
                need(manifest["format_version"] == 0 and name.startswith(own), "a foreign manifest")
                decided = path.stat().st_mtime
                if decided >= good.get(manifest["id"], (0.0,))[0]:
                    good[manifest["id"]] = (decided, manifest)
        return {point: manifest for point, (_, manifest) in good.items()}


class DiskReader:
    """Disk maps: ``output`` gets (offset, bytes) of every block that is not zero."""

    def __init__(self, repository: Repository, size: int, output: Output) -> None:
        need(0 <= size <= 1 << 52, "a disk of no possible size")
        self._repository, self._size, self._output = repository, size, output
        self._leaves = -(-size // (LEAF_BLOCKS * BLOCK))

    def run(self, root: dict[str, Any] | None) -> None:
        levels = next(level for level in range(1, 7) if FANOUT**level >= self._leaves)
        if root is not None:
            self._node(bytes.fromhex(root["pack"]), int(root["number"]), levels, 0)

    def _node(self, pack: bytes, number: int, level: int, index: int) -> None:
        """Nodes."""
        plain = self._repository.blob(pack, number)
        places = min(FANOUT, -(-self._leaves // FANOUT ** (level - 1)) - FANOUT * index)
        own_level, last, tables, needs = struct.unpack_from("<BBHI", plain)
        need((own_level, last + 1) == (level, places), "a node of another place")
        names = [plain[8 + 32 * n : 40 + 32 * n] for n in range(tables)]
        at = 8 + 32 * tables
        owners = struct.unpack_from(f"<{places}H", plain, at)
        numbers = struct.unpack_from(f"<{places}I", plain, at + 2 * places)
        present = [place for place in range(places) if owners[place]]
        need(max(owners) <= tables + 1, "a node that names no pack of its table")
        digests = at + 6 * places
        at = digests + (16 * len(present) if level == 1 else 0)
        need(len(plain) == at + 36 * needs, "a node of another length")
        bitmaps = struct.unpack_from(f"<{needs}I", plain, at + 32 * needs)
        packs = [plain[at + 32 * n : at + 32 * n + 32] for n in range(needs)]
        for order, place in enumerate(present):
            child = (pack if owners[place] == 1 else names[owners[place] - 2], numbers[place])
            if level > 1:
                self._node(*child, level - 1, FANOUT * index + place)
                continue
            own = [name for name, bitmap in zip(packs, bitmaps, strict=True) if bitmap >> place & 1]
            digest = self._leaf(self._repository.blob(*child), own, FANOUT * index + place)
            known = plain[digests + 16 * order : digests + 16 * order + 16]
            need(digest == known, f"leaf {FANOUT * index + place} is not what its node names")

    def _leaf(self, plain: bytes, packs: list[bytes], index: int) -> bytes:
        """Leaves, Blocks. Writes the leaf's blocks; the digest of their ids."""
        repository, keys = self._repository, self._repository.keys
        blocks = min(LEAF_BLOCKS, -(-self._size // BLOCK) - LEAF_BLOCKS * index)
        ids = blake3(key=keys.leaf)
        done = 0
        for place, count, pack, ordinal in sorted(runs(plain, len(packs), blocks)):
            need(repository.pack(packs[pack]).data, "a block in a metadata pack")
            ids.update(bytes(16 * (place - done)))
            for step in range(count):
                frame, slot = divmod(ordinal + step, FRAME_BLOCKS)
                content = repository.frame(packs[pack], frame)[slot * BLOCK : (slot + 1) * BLOCK]
                need(len(content) == BLOCK, "a slot beyond its frame")
                ids.update(blake3(content, key=keys.block_id).digest(16))
                offset = (LEAF_BLOCKS * index + place + step) * BLOCK
                self._output(offset, content[: self._size - offset])
            done = place + count
        ids.update(bytes(16 * (blocks - done)))
        return ids.digest(16)


def column(plain: bytes, at: int, entries: int, width: int) -> tuple[list[int], int]:
    """Byte planes, the lowest first; and where the next column begins."""
    planes = [plain[at + n * entries : at + (n + 1) * entries] for n in range(width)]
    values = [int.from_bytes(entry, "little") for entry in zip(*planes, strict=True)]
    return values, at + width * entries


def runs(plain: bytes, packs: int, blocks: int) -> Iterator[tuple[int, int, int, int]]:
    """Leaves: place, count, pack and first ordinal of each run."""
    own_packs, entries = struct.unpack_from("<II", plain)
    need(own_packs == packs and packs <= entries <= blocks, "a leaf of other packs")
    need(len(plain) == 8 + 5 * packs + 10 * entries, "a leaf of another length")
    placed, at = column(plain, 8, packs, 1)
    first, at = column(plain, at, packs, 4)
    gap, at = column(plain, at, entries, 2)
    pack, at = column(plain, at, entries, 2)
    counts, at = column(plain, at, entries, 2)
    steps, at = column(plain, at, entries, 4)
    need(set(pack) == set(range(packs)) and set(placed) <= {0, 1}, "a leaf of other packs")
    by_pack = sorted(range(entries), key=lambda run: pack[run])  # stable: the disk's order within
    order = {run: number for number, run in enumerate(by_pack)}
    place, places = 0, []
    for run in range(entries):
        place += gap[run]
        places.append(place)
        place += counts[order[run]] + 1
    need(place <= blocks, "a run that leaves its leaf")
    before: dict[int, tuple[int, int]] = {}  # pack: (next ordinal, next place) after its last run
    for number, run in enumerate(by_pack):
        zigzag = steps[number]
        step = -(zigzag + 1) // 2 if zigzag & 1 else zigzag // 2
        ordinal = first[pack[run]]
        if pack[run] in before:
            ordinal, behind = before[pack[run]]
            ordinal += places[run] - behind if placed[pack[run]] else 0
        ordinal = (ordinal + step) % (1 << 32)
        count = counts[number] + 1
        need(ordinal + count - 1 <= MAX_ORDINAL, "an ordinal out of bounds")
        before[pack[run]] = (ordinal + count, places[run] + count)
        yield places[run], count, pack[run], ordinal


def main() -> int:
    parser = argparse.ArgumentParser(description="Read a drvm repository without drvm.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("point", nargs="?")
    parser.add_argument("which", nargs="?")
    parser.add_argument("output", nargs="?", type=Path)
    asked = parser.parse_args()
    if asked.password_file is not None:
        passphrase = asked.password_file.read_bytes().split(b"\n")[0]
    else:
        passphrase = getpass.getpass("passphrase: ").encode()
    try:
        repository = Repository(asked.repository, passphrase)
        points = repository.points()
        if asked.output is None:
            show(points)
        else:
            chosen = [m for point, m in points.items() if point.startswith(asked.point)]
            need(len(chosen) == 1, f"{len(chosen)} points begin with {asked.point}")
            write(repository, chosen[0], asked.which, asked.output)
    except (Damage, OSError, KeyError, ValueError, TypeError, struct.error) as error:
        print(f"read_drvm: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def show(points: dict[str, Manifest]) -> None:
    for manifest in sorted(points.values(), key=lambda manifest: str(manifest["created"])):
        disks = " ".join(f"{disk['target']}:{disk['size_bytes']}" for disk in manifest["disks"])
        line = f"{manifest['id']}  {manifest['created']}  {manifest['vm']}  {disks}"
        print(ascii(line)[1:-1])


def write(repository: Repository, manifest: Manifest, which: str, output: Path) -> None:
    """A disk by its target, or a blob of the manifest by its field."""
    partial = output.with_name(output.name + ".partial")
    with partial.open("xb") as stream:
        streams = [*manifest["disks"], *filter(None, [manifest.get("memory")])]
        disks = {disk["target"]: disk for disk in streams}
        if which in ("definition", "nvram"):
            blob = manifest[which] or {}
            stream.write(repository.blob(bytes.fromhex(blob["pack"]), int(blob["number"])))
        else:
            need(which in disks, f"there is {', '.join(disks)}, definition, nvram")
            size = int(disks[which]["size_bytes"])
            stream.truncate(size)
            file = stream.fileno()
            reader = DiskReader(repository, size, lambda at, data: os.pwrite(file, data, at))
            reader.run(disks[which]["root"])
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(output)


if __name__ == "__main__":
    sys.exit(main())
