"""What a restore costs: against ``cp`` of the image, and against other programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import floors, product
from bench.harness import Bench, Cost, Figure, Run, by_turns, cpu_s, peak_mib, wall_s
from bench.peers import Peer, copy_sparse, peers
from drvm.core.units import GIB

Costs = Mapping[str, Sequence[Cost]]


def full_restore(bench: Bench) -> list[Figure]:
    """A disk without holes, then one with: each to a new file, durable at the end."""
    judged = []
    for title, name in (("without holes", "dense"), ("with holes", "A")):
        image = bench.disk(name)
        gib = sum(map(len, floors.pieces(image, floors.BLOCK_BYTES))) / GIB
        stage = _Stage(image, bench.scratch)
        costs = by_turns(stage.cases, bench.repeat, stage.prepare)
        judged += figures(costs, gib, title, [peer.name for peer in stage.peers])
    return judged


class _Stage:
    """Every program has its repository with this one disk; the target is a new directory."""

    def __init__(self, image: Path, scratch: Path) -> None:
        self._image = image
        self._target = scratch / "restored"
        self.peers = peers(scratch)
        self._repository = product.in_directory(scratch / "drvm")
        self._manifest = product.back_up(self._repository, image, "a")
        self._appliance = product.appliance(scratch / "appliance")
        self._appliance.drvm("backup", "--image", str(image), "--name", "a")
        for peer in self.peers:
            peer.make()
            peer.save(image)
        self.cases: dict[str, Run] = {
            "cp": lambda: copy_sparse(image, self._target),
            "restore": self._restore,
            "command": self._by_command,
            **{peer.name: self._loading(peer) for peer in self.peers},
        }

    def prepare(self, _: str) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        os.sync()
        self._target.mkdir(parents=True)

    def _restore(self) -> dict[str, float]:
        path = self._target / "disk.raw"
        product.restore(self._repository, self._manifest, path)
        return {"allocated_bytes": path.stat().st_blocks * 512}

    def _by_command(self) -> None:
        self._appliance.drvm("restore", "a", "--output", str(self._target / "out"))

    def _loading(self, peer: Peer) -> Run:
        return lambda: peer.load(self._image, self._target)


def figures(costs: Costs, gib: float, title: str, others: Sequence[str]) -> list[Figure]:
    """``gib``: of the disk's blocks that hold anything."""
    ours, command, copied = costs["restore"], costs["command"], costs["cp"]
    judged = [
        Figure(
            f"restore wall : cp --sparse, {title}",
            wall_s(ours) / wall_s(copied),
            2.5,
            note=f"{wall_s(ours):.1f} : {wall_s(copied):.1f} s, {gib:.2f} GiB",
        ),
        Figure(f"restore CPU, {title}", cpu_s(ours) / gib, 1.7, "cpu-s/GiB"),
    ]
    for name, limit in (("restic", 0.5), ("borg", 0.25)):
        if name not in others:
            judged.append(Figure(f"restore : {name}", None, limit, note=f"no {name} here"))
            continue
        theirs = costs[name]
        note = f"{wall_s(command):.1f} : {wall_s(theirs):.1f} s"
        ratio = wall_s(command) / wall_s(theirs)
        judged.append(Figure(f"restore wall : {name}, {title}", ratio, limit, note=note))
        note = f"{cpu_s(command):.1f} : {cpu_s(theirs):.1f} s"
        ratio = cpu_s(command) / cpu_s(theirs)
        judged.append(Figure(f"restore CPU : {name}, {title}", ratio, None, note=note))
    judged.append(Figure(f"peak memory of a restore, {title}", peak_mib(command), 250, "MiB"))
    return judged
