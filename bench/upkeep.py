"""``python -m bench.upkeep``: what pruning and collecting cost in a large repository.

The repository is simulated: packs of data are names and sizes, for neither command reads them;
manifests, finals and the nodes of disk maps are real. ``--points`` and ``--packs`` say how large.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from bench import product
from bench.harness import Cost, Figure, as_rows, measure, print_table
from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import rfc3339
from drvm.core.ids import new_generation, new_point_id
from drvm.core.units import MIB
from drvm.repository.blobs import BlobWriter, NewBlob
from drvm.repository.crypto import Sealer
from drvm.repository.diskmap import levels, width
from drvm.repository.layout import FANOUT, final_object, pack_object, point_object
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.nodes import Child, Node, encode_node
from drvm.repository.packs import BlobRef
from drvm.repository.points import Final
from drvm.repository.repository import Repository
from drvm.store.directory import DirectoryStore
from drvm.upkeep.gc import Collected, GcRules, plan_gc, run_gc
from drvm.upkeep.prune import plan_prune, run_prune
from drvm.upkeep.retention import Now, Rules
from drvm.upkeep.survey import survey

LEAVES = 1600
"""Of each machine's disk: 100 GiB under 50 level-1 nodes."""
POINTS_OF_A_MACHINE = 100
KEPT = 90
CHANGED_NODES, CHANGED_LEAVES = 4, 3
"""By each point, the latter in each of the former: a day of little work."""
PACKS_OF_A_LEAF = 6
PACK_BYTES = 32 * MIB
LIMIT_MIB = 500
NO_TIME = dt.timedelta(0)
AT_ONCE = GcRules(NO_TIME, dt.timedelta(days=7), NO_TIME)

Tree = dict[tuple[int, int], Node]
"""(level, index) -> node."""


@dataclass
class Simulated:
    """Writes objects straight into the directory of a store: nothing of that is measured."""

    root: Path
    sealer: Sealer
    chance: random.Random
    started: dt.datetime

    def machine(self, number: int, packs: int) -> None:
        """A machine with its points; ``packs``: names of data, one part old, others by and by."""
        names = [self._data_pack() for _ in range(packs)]
        old = names[: packs // 2]
        vm_uuid = str(uuid.uuid4())
        trees: Tree = {}
        per_point = (packs - len(old)) // POINTS_OF_A_MACHINE
        for day in range(POINTS_OF_A_MACHINE):
            fresh = names[len(old) + day * per_point :][:per_point] or old
            root = self._tree(trees, old if day == 0 else [*fresh, *old[:PACKS_OF_A_LEAF]], day)
            self._point(number, vm_uuid, day, root)

    def _data_pack(self) -> bytes:
        name = self.chance.randbytes(32)
        path = self.root / pack_object(name)
        with path.open("wb") as stream:
            stream.truncate(PACK_BYTES)
        return name

    def _tree(self, tree: Tree, packs: list[bytes], day: int) -> BlobRef:
        """The changed nodes and all above them, in one metadata pack."""
        top = levels(LEAVES)
        blobs = BlobWriter(self.sealer, lambda pack: self._put(pack_object(pack.name), pack.data))
        count = width(LEAVES, 1)
        dirty = set(range(count) if day == 0 else self.chance.sample(range(count), CHANGED_NODES))
        written: list[tuple[int, int, dict[int, Child]]] = []
        new: dict[tuple[int, int], NewBlob] = {}
        for level in range(1, top + 1):
            for index in sorted(dirty):
                places = min(FANOUT, width(LEAVES, level - 1) - index * FANOUT)
                children = dict(tree[level, index].children) if day else {}
                for place in self._places(level, places, index, day, new):
                    children[place] = self._child(blobs, level, index * FANOUT + place, packs, new)
                node = Node(level, places, dict(sorted(children.items())))
                new[level, index] = blobs.add_node(partial(encode_node, node))
                written.append((level, index, children))
            dirty = {index // FANOUT for index in dirty}
        blobs.finish()
        for level, index, children in written:
            for place, child in children.items():
                if isinstance(child.ref, NewBlob):
                    children[place] = Child(blobs.ref(child.ref), child.digest, child.packs)
            places = min(FANOUT, width(LEAVES, level - 1) - index * FANOUT)
            tree[level, index] = Node(level, places, dict(sorted(children.items())))
        return blobs.ref(new[top, 0])

    def _places(
        self, level: int, places: int, index: int, day: int, new: dict[tuple[int, int], NewBlob]
    ) -> Iterator[int]:
        if level > 1:
            yield from (p for p in range(places) if (level - 1, index * FANOUT + p) in new)
        else:
            yield from (
                range(places)
                if day == 0
                else self.chance.sample(range(places), min(places, CHANGED_LEAVES))
            )

    def _child(
        self,
        blobs: BlobWriter,
        level: int,
        below: int,
        packs: list[bytes],
        new: dict[tuple[int, int], NewBlob],
    ) -> Child:
        if level > 1:
            return Child(new[level - 1, below])
        names = self.chance.sample(packs, min(len(packs), PACKS_OF_A_LEAF))
        return Child(blobs.add(b"leaf"), self.chance.randbytes(16), tuple(sorted(names)))

    def _point(self, number: int, vm_uuid: str, day: int, root: BlobRef) -> None:
        moment = rfc3339(self.started + dt.timedelta(days=day))
        size_bytes = LEAVES * LEAF_BYTES
        manifest = Manifest(
            id=new_point_id(),
            vm=f"vm{number}",
            vm_uuid=vm_uuid,
            created=moment,
            finished=moment,
            consistency="filesystem",
            engine="external",
            host="simulated",
            drvm_version="0",
            disks=(Disk("vda", size_bytes, "raw", "full-read", 0, 0, 0, root=StoredBlob.of(root)),),
        )
        generation = new_generation()
        name = point_object(vm_uuid, manifest.id, generation)
        sealed = self.sealer.seal_object(b"point", name, manifest.encode())
        self._put(name, sealed)
        final = msgspec.json.encode(Final("ok", hashlib.sha256(sealed).hexdigest()))
        name = final_object(manifest.id, generation)
        self._put(name, self.sealer.seal_object(b"final", name, final))

    def _put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def simulate(root: Path, points: int, packs: int) -> None:
    """``packs``: of data and metadata together."""
    repository = Repository.create(DirectoryStore.create(root), product.PASSPHRASE)
    (root / "packs").mkdir()
    now = dt.datetime.now(dt.UTC)
    started = now - dt.timedelta(days=POINTS_OF_A_MACHINE + 1)
    made = Simulated(root, repository._sealer, random.Random(7), started)
    machines = points // POINTS_OF_A_MACHINE
    for number in range(machines):
        made.machine(number, (packs - points) // machines)
        print(f"\r{number + 1} of {machines} machines", end="", flush=True)
    print()


def prune(repository: Repository) -> dict[str, float]:
    """The oldest tenth of all points goes, and what stays is looked through."""
    now = dt.datetime.now(dt.UTC)
    plan = plan_prune(
        repository, repository.points(), lambda vm: Rules(last=KEPT), Now(now, now), NO_TIME
    )
    ended = run_prune(repository, plan.going).ended
    return {"done": len(ended)}


def collect(repository: Repository) -> dict[str, float]:
    now, done = dt.datetime.now(dt.UTC), Collected()
    plan = plan_gc(survey(repository, now), Now(now, now), AT_ONCE)
    run_gc(repository, plan, done)
    return {"done": done.condemned + done.deleted}


def figures(root: Path) -> list[Figure]:
    def of_a_new_process(what: Callable[[Repository], dict[str, float]]) -> dict[str, float]:
        return what(Repository.open(DirectoryStore(root), product.PASSPHRASE))

    rows: list[Figure] = []
    for name, what, unit in (
        ("prune", prune, "points ended"),
        ("gc, condemning", collect, "packs"),
        ("gc, deleting", collect, "packs"),
    ):
        cost: Cost = measure(partial(of_a_new_process, what))
        note = f"{cost.told['done']:.0f} {unit}"
        rows.append(Figure(f"{name}: peak memory", cost.peak_mib, LIMIT_MIB, "MiB", note))
        rows.append(Figure(f"{name}: CPU", cost.cpu_s, None, "s"))
        rows.append(Figure(f"{name}: wall", cost.wall_s, None, "s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.upkeep")
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--packs", type=int, default=100_000)
    parser.add_argument("--dir", type=Path, help="where the simulated repository goes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drvm-upkeep-", dir=options.dir) as directory:
        root = Path(directory) / "repository"
        simulate(root, options.points, options.packs)
        rows = figures(root)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(as_rows(rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
