"""What it costs to turn a disk back, and to go on with a restore, beside a full restore.

``python -m bench.in_place --dir DIR``, as root, with qemu-utils; restic, borg and virtnbdbackup are
left out of the table where they are missing. A disk of 2 GiB, three quarters of it data, of which
1 % is changed in pieces of 4 to 64 KiB, anywhere.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bench import floors, product
from bench.harness import Figure, Run, by_turns, cpu_s, print_table, told, wall_s
from bench.peers import Peer, peers, virtnbd
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.core.units import GIB, MIB
from drvm.restore.targets.images import ImageRestorer, PlannedImage

SIZE = 2 * GIB
DATA_SHARE = 0.75
CHANGED = 0.01
_WORDS = 4096


class _Stage:
    """``good`` is what the point holds, ``changed`` what is there now, ``half`` what a killed
    restore left; copies of them are what is measured."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.good, self.changed, self.half = (
            directory / f"{name}.raw" for name in ("good", "changed", "half")
        )
        _make_disk(self.good)
        self.changed_bytes = _make_changed(self.good, self.changed)
        _make_half(self.good, self.half)
        for name in (self.good, self.changed):
            _qemu_img("convert", "-f", "raw", "-O", "qcow2", name, name.with_suffix(".qcow2"))
        self.repository = product.in_directory(directory / "drvm")
        self.manifest = product.back_up(self.repository, self.good, "disk")
        self.target = directory / "target"
        self._appliance = product.appliance(directory / "appliance")
        self._appliance.drvm("backup", "--image", str(self.good), "--name", "disk")
        known = (*peers(directory), virtnbd(directory / "virtnbd"))
        self.peers = [peer for peer in known if peer is not None]
        for peer in self.peers:
            peer.make()
            peer.save(self.good)

    @property
    def cases(self) -> dict[str, Run]:
        return {
            "in place, raw": partial(self._turn_back, "raw"),
            "in place, qcow2": partial(self._turn_back, "qcow2"),
            "resumed at half": partial(self._turn_back, "raw"),
            "full restore, raw": self._restore,
            "command": self._by_command,
            "qemu-img convert": self._convert,
            **{peer.name: self._loading(peer) for peer in self.peers},
        }

    def prepare(self, name: str) -> None:
        if self.target.is_dir():
            shutil.rmtree(self.target)
        self.target.unlink(missing_ok=True)
        there: Mapping[str, Path] = {
            "in place, raw": self.changed,
            "in place, qcow2": self.changed.with_suffix(".qcow2"),
            "resumed at half": self.half,
        }
        if name in there:
            argv = ["cp", "--sparse=always", str(there[name]), str(self.target)]
            subprocess.run(argv, check=True)
        elif name == "command" or name in {peer.name for peer in self.peers}:
            self.target.mkdir()
        os.sync()

    def _turn_back(self, image_format: str) -> dict[str, float]:
        (disk,) = self.manifest.disks
        restorer = ImageRestorer(self.repository, SystemProcesses(), SystemClock())
        done = restorer.turn_back(PlannedImage(disk, self.target, image_format), NoProgress())
        return {"bytes": done.written_bytes + done.zeroed_bytes}

    def _restore(self) -> dict[str, float]:
        return {"bytes": product.restore(self.repository, self.manifest, self.target)}

    def _convert(self) -> None:
        image = self.good.with_suffix(".qcow2")
        _qemu_img("convert", "-f", "qcow2", "-O", "raw", image, self.target)
        os.sync()

    def _by_command(self) -> None:
        self._appliance.drvm("restore", "disk", "--output", str(self.target / "out"))

    def _loading(self, peer: Peer) -> Run:
        return lambda: peer.load(self.good, self.target)


def figures(stage: _Stage, repeat: int) -> list[Figure]:
    costs = by_turns(stage.cases, repeat, stage.prepare)
    full, judged = costs["full restore, raw"], []
    for kind in ("raw", "qcow2"):
        mine = costs[f"in place, {kind}"]
        ratio = told(mine, "bytes") / stage.changed_bytes
        note = f"{told(mine, 'bytes') / MIB:.1f} of {stage.changed_bytes / MIB:.1f} MiB"
        judged.append(Figure(f"in place, {kind}: written : changed blocks", ratio, 1.2, note=note))
        ratio, note = wall_s(mine) / wall_s(full), f"{wall_s(mine):.1f} : {wall_s(full):.1f} s"
        judged.append(Figure(f"in place, {kind}: wall : full restore", ratio, note=note))
        gib = SIZE * DATA_SHARE / GIB
        judged.append(Figure(f"in place, {kind}: CPU", cpu_s(mine) / gib, unit="cpu-s/GiB"))
    resumed = costs["resumed at half"]
    note = f"{wall_s(resumed):.1f} : {wall_s(full):.1f} s"
    judged.append(Figure("resumed at half: wall : full", wall_s(resumed) / wall_s(full), note=note))
    judged.append(
        Figure("resumed at half: written : full", told(resumed, "bytes") / told(full, "bytes"))
    )
    for name in ("qemu-img convert", *(peer.name for peer in stage.peers)):
        ours, theirs = wall_s(costs["command"]), wall_s(costs[name])
        note = f"{ours:.1f} : {theirs:.1f} s"
        judged.append(Figure(f"drvm restore: wall : {name}", ours / theirs, note=note))
    return judged


def _make_disk(path: Path) -> None:
    """Data that zstd shrinks to about half, in stretches of 1 to 32 MiB."""
    source = random.Random(1)
    words = [source.randbytes(8) for _ in range(_WORDS)]
    with path.open("wb") as stream:
        stream.truncate(SIZE)
        at = 0
        while at < SIZE:
            length = min(source.randrange(1, 32) * MIB, SIZE - at)
            if source.random() < DATA_SHARE:
                stream.seek(at)
                for _ in range(length // MIB):
                    some = source.choices(words, k=MIB // 16)
                    stream.write(source.randbytes(MIB // 2) + b"".join(some))
            at += length


def _make_changed(good: Path, path: Path) -> int:
    """Returns the bytes of the blocks that differ."""
    shutil.copyfile(good, path)
    source = random.Random(2)
    changed: set[int] = set()
    pieces = [at // floors.BLOCK_BYTES for at in range(0, SIZE, floors.BLOCK_BYTES)]
    with path.open("r+b") as stream:
        while len(changed) < len(pieces) * CHANGED:
            first, count = source.choice(pieces), source.randrange(1, 17)
            count = min(count, len(pieces) - first)
            stream.seek(first * floors.BLOCK_BYTES)
            stream.write(source.randbytes(count * floors.BLOCK_BYTES))
            changed |= set(range(first, first + count))
    return len(changed) * floors.BLOCK_BYTES


def _make_half(good: Path, path: Path) -> None:
    """Every other MiB: restores write in the order of packs, from several threads."""
    with good.open("rb") as source, path.open("wb") as stream:
        stream.truncate(SIZE)
        for at in range(0, SIZE, 2 * MIB):
            source.seek(at)
            stream.seek(at)
            stream.write(source.read(MIB))


def _qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    directory = options.dir / "in-place"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        print_table(figures(_Stage(directory), options.repeat))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
