"""What a full backup costs: against the floor, and against other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import floors, product
from bench.harness import Bench, Cost, Figure, Run, by_turns, cpu_s, peak_mib, told, wall_s
from bench.peers import Peer, peers
from drvm.core.units import GIB
from drvm.repository.repository import Repository

Costs = Mapping[str, Sequence[Cost]]


def full_backup(bench: Bench) -> list[Figure]:
    """Everything by turns on one disk without holes."""
    stage = _Stage(bench.disk("dense"), bench.scratch)
    costs = by_turns(stage.cases, bench.repeat, stage.prepare)
    return figures(costs, [peer.name for peer in stage.peers])


class _Stage:
    """Each case meets a repository that is new and empty."""

    def __init__(self, image: Path, scratch: Path) -> None:
        self.peers = peers(scratch)
        self._image = image
        self._scratch = scratch
        self._repository: Repository
        self._prepare: dict[str, Callable[[], None]] = {
            "null": self._null,
            "null unverified": self._null,
            "directory": self._directory,
            "directory unverified": self._directory,
            "command": self._command,
            **{peer.name: peer.make for peer in self.peers},
        }
        self.cases: dict[str, Run] = {
            "floor": lambda: floors.read_and_compress(image),
            "null": self._backup,
            "null unverified": self._unverified,
            "directory": self._backup,
            "directory unverified": self._unverified,
            "command": self._by_command,
            **{peer.name: self._saving(peer) for peer in self.peers},
        }

    def prepare(self, case: str) -> None:
        self._prepare.get(case, lambda: None)()

    def _null(self) -> None:
        self._repository = Repository.create(product.NullStore(), product.PASSPHRASE)

    def _directory(self) -> None:
        self._repository = product.in_directory(self._scratch / "drvm")

    def _command(self) -> None:
        self._appliance = product.appliance(self._scratch / "appliance")

    def _backup(self) -> dict[str, float]:
        manifest = product.back_up(self._repository, self._image, "a")
        return {"stored_bytes": manifest.stored_bytes}

    def _unverified(self) -> dict[str, float]:
        product.without_verification()
        return self._backup()

    def _by_command(self) -> None:
        self._appliance.drvm("backup", "--image", str(self._image), "--name", "a")

    def _saving(self, peer: Peer) -> Run:
        return lambda: peer.save(self._image)


def figures(costs: Costs, others: Sequence[str]) -> list[Figure]:
    floor = costs["floor"]
    gib = told(floor, "plain_bytes") / GIB

    def against_floor(case: str) -> float:
        return cpu_s(costs[case]) / cpu_s(floor)

    def noted(case: str) -> str:
        return f"{cpu_s(costs[case]) / gib:.2f} cpu-s/GiB"

    verification = against_floor("null") - against_floor("null unverified")
    judged = [
        Figure("floor: read + zstd -1", cpu_s(floor) / gib, None, "cpu-s/GiB", f"{gib:.2f} GiB"),
        Figure(
            "backup CPU : floor, null store, unverified",
            against_floor("null unverified"),
            1.20,
            note=noted("null unverified"),
        ),
        Figure(
            "backup CPU : floor, directory, unverified",
            against_floor("directory unverified"),
            1.35,
            note=noted("directory unverified"),
        ),
        Figure("verification adds, of the floor", verification, 0.45, note=noted("null")),
        Figure("backup CPU : floor, directory, verified", against_floor("directory")),
    ]
    ours = costs["command"]
    for name, limit in (("restic", 0.5), ("borg", 0.65)):
        if name not in others:
            judged.append(Figure(f"backup : {name}", None, limit, note=f"{name} is not installed"))
            continue
        for what, of in (("CPU", cpu_s), ("wall", wall_s)):
            note = f"{of(ours):.1f} : {of(costs[name]):.1f} s"
            ratio = of(ours) / of(costs[name])
            judged.append(Figure(f"backup {what} : {name}", ratio, limit, note=note))
    judged.append(Figure("peak memory of a backup", peak_mib(ours), 250, "MiB"))
    return judged
