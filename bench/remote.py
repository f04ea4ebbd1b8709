"""How fast does a disk come to another host, beside ``virsh vol-upload`` of the same image?

``python -m bench.remote --dir DIR [--mib N] [--repeat N] [--json FILE]``, as root. The other host
is a libvirtd in namespaces of its own, reached over a virtual wire by TCP and by SSH. The disk has
half of its MiB in data, of which zstd takes half. By turns: drvm out of a repository in a
directory, as raw and as qcow2; ``virsh vol-upload --sparse`` of a ready image of either format; and
``qemu-img convert`` of the qcow2 to a local file, as what no wire can be faster than. What was
uploaded is compared with the disk once, by qemu-img.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path

from bench import product
from bench.backups import Costs
from bench.harness import Figure, Run, as_rows, by_turns, cpu_s, print_table, wall_s
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, no_trace
from drvm.core.units import MIB
from drvm.host.libvirt_host import LibvirtHost
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.volumes import VolumeRestorer
from tests.second_host import IMAGES, POOL, SecondHost, second_host

_FORMATS = ("raw", "qcow2")
_VOLUME = "bench"
_WORDS = 4096


class _Stage:
    def __init__(self, directory: Path, second: SecondHost, mib: int) -> None:
        self._second = second
        self.uris = {"tcp": second.uri, "ssh": second.ssh_uri}
        self.images = {kind: directory / f"disk.{kind}" for kind in _FORMATS}
        self._copy = directory / "copy.raw"
        _make_disk(self.images["raw"], mib)
        _convert(self.images["raw"], "raw", self.images["qcow2"], "qcow2")
        self._repository = product.in_directory(directory / "drvm")
        self._manifest = product.back_up(self._repository, self.images["raw"], "disk")
        second.virsh("pool-refresh", POOL)

    @property
    def cases(self) -> dict[str, Run]:
        made: dict[str, Run] = {}
        for way, uri in self.uris.items():
            for kind in _FORMATS:
                made[f"drvm, {kind}, {way}"] = partial(self._restore, uri, kind)
                made[f"virsh, {kind}, {way}"] = partial(self._upload, uri, kind)
        images = self.images["qcow2"], "qcow2", self._copy, "raw"
        return {**made, "qemu-img convert": partial(_convert, *images)}

    def prepare(self, _: str) -> None:
        self._copy.unlink(missing_ok=True)
        for path in self._second.images.iterdir():
            path.unlink()
        self._second.virsh("pool-refresh", POOL)

    def compare(self) -> None:
        """Raises where a volume is not the disk."""
        for kind in _FORMATS:
            self.prepare(kind)
            self._restore(self.uris["tcp"], kind)
            there = self._second.images / _VOLUME
            argv = ["qemu-img", "compare", "-q", "-f", "raw", "-F", kind]
            subprocess.run([*argv, str(self.images["raw"]), str(there)], check=True)

    def _restore(self, uri: str, kind: str) -> dict[str, float]:
        (disk,) = self._manifest.disks
        image = PlannedImage(disk, IMAGES / _VOLUME, kind, pool=POOL, pool_kind="dir")
        host = LibvirtHost(uri)
        try:
            restorer = VolumeRestorer(self._repository, host.storage, SystemClock())
            return {"bytes": restorer.restore(image, NoProgress(), no_trace)}
        finally:
            host.close()

    def _upload(self, uri: str, kind: str) -> None:
        image = self.images[kind]
        virsh = ["virsh", "-q", "-c", uri]
        size = str(image.stat().st_size)
        subprocess.run([*virsh, "vol-create-as", POOL, _VOLUME, size], check=True)
        upload = [*virsh, "vol-upload", "--sparse", "--pool", POOL, _VOLUME, str(image)]
        subprocess.run(upload, check=True)


def figures(costs: Costs, mib: int, ways: tuple[str, ...]) -> list[Figure]:
    """``mib``: of data."""
    found = []
    for way in ways:
        for kind in _FORMATS:
            mine, theirs = costs[f"drvm, {kind}, {way}"], costs[f"virsh, {kind}, {way}"]
            name, seconds = f"{kind} by {way}", f"{wall_s(mine):.1f} : {wall_s(theirs):.1f} s"
            found += [
                Figure(f"{name}: drvm", mib / wall_s(mine), unit="MiB/s"),
                Figure(f"{name}: virsh vol-upload", mib / wall_s(theirs), unit="MiB/s"),
                Figure(f"{name}: wall : virsh", wall_s(mine) / wall_s(theirs), note=seconds),
                Figure(f"{name}: CPU of drvm", cpu_s(mine) * 1024 / mib, unit="cpu-s/GiB"),
            ]
    plain = wall_s(costs["qemu-img convert"])
    return [*found, Figure("qemu-img convert, here", mib / plain, unit="MiB/s")]


def _make_disk(path: Path, mib: int) -> None:
    """Data in stretches of 8 MiB, and as much nothing between them."""
    source = random.Random(1)
    words = [source.randbytes(8) for _ in range(_WORDS)]
    with path.open("wb") as stream:
        stream.truncate(mib * MIB)
        for at in range(0, mib, 16):
            stream.seek(at * MIB)
            for _ in range(min(8, mib - at)):
                stream.write(source.randbytes(MIB // 2))
                stream.write(b"".join(source.choices(words, k=MIB // 16)))


def _convert(image: Path, kind: str, to: Path, to_kind: str) -> None:
    argv = ["qemu-img", "convert", "-f", kind, "-O", to_kind, str(image), str(to)]
    subprocess.run(argv, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.remote", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=2048, help="of the disk; half of it is data")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    directory = asked.dir / "remote"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        with second_host(SystemProcesses()) as second:
            stage = _Stage(directory, second, asked.mib)
            stage.compare()
            costs = by_turns(stage.cases, asked.repeat, stage.prepare)
            table = figures(costs, asked.mib // 2, tuple(stage.uris))
    finally:
        shutil.rmtree(directory)
    print_table(table)
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_rows(table), indent=1))


if __name__ == "__main__":
    main()
