"""The repository in the model: objects as bits, processes as small tuples.

Packs and manifests are bits of integers. Three packs are there in the beginning: ``A``, of subtrees
that the old point shares with its children; ``B``, which only the old point needs; ``C``, which
nothing needs, but whose blocks an index still finds. Every writer has a fresh pack of its own for
each attempt. A *slot* is one generation of a point; slot 0 is the old point, which is good.
"""

from __future__ import annotations

import functools
import itertools
import struct
from dataclasses import dataclass
from typing import NamedTuple

A, B, C = 1, 2, 4
_FIRST_FRESH = 3

Local = tuple[int, int, int]
"""What one process knows: where it is (an index into its steps), and two masks or numbers."""


class World(NamedTuple):
    """One state. ``echoes`` and ``manifest_echoes``: of which packs and manifests the request that
    made them may be carried out once more, late. ``ended``: retention wants the old point gone."""

    packs: int
    condemned: int
    echoes: int
    manifests: int
    manifest_echoes: int
    ok: int
    aborted: int
    needs: tuple[int, ...]
    ended: bool
    procs: tuple[Local, ...]


@dataclass(frozen=True)
class Writer:
    """``slots``: one for each attempt. ``base``: the packs it relies on at first, besides its fresh
    ones. ``replaces``: the slot that it writes anew and deletes at the end."""

    name: str
    slots: tuple[int, ...]
    fresh: tuple[int, ...]
    base: int
    replaces: int | None = None


@dataclass(frozen=True)
class Config:
    """Which processes there are. ``echoes``: late duplicates are part of it. ``paged``: what
    changes while a listing runs may or may not be in it. ``clears``: manifests that were given up
    may go at any time."""

    name: str
    writers: tuple[Writer, ...]
    packs: int = A | B | C
    collectors: int = 1
    retention: bool = False
    echoes: bool = False
    paged: bool = False
    clears: bool = False
    long: bool = False

    @property
    def all_packs(self) -> int:
        return self.packs | sum(sum(writer.fresh) for writer in self.writers)

    def pages(self, mask: int) -> tuple[int, ...]:
        """What a listing of these objects sees at one moment."""
        return bits(mask) if self.paged else (mask,)

    @property
    def slots(self) -> int:
        return 1 + sum(len(writer.slots) for writer in self.writers)

    @property
    def old_slots(self) -> int:
        """The mask of all generations of the old point."""
        mask, replaced = 1, {0}
        for writer in self.writers:
            if writer.replaces in replaced:
                replaced |= set(writer.slots)
                mask |= sum(1 << slot for slot in writer.slots)
        return mask

    def start(self) -> World:
        processes: list[Local] = [(0, 0, 0)] * len(self.writers)
        processes += [(0, 0, 0)] * self.retention
        processes += [(0, 0, 0)] * self.collectors
        return World(
            packs=self.packs,
            condemned=0,
            echoes=0,
            manifests=1,
            manifest_echoes=1 if self.echoes else 0,
            ok=1,
            aborted=0,
            needs=(self.packs & (A | B), *[0] * (self.slots - 1)),
            ended=False,
            procs=tuple(processes),
        )

    @functools.cached_property
    def _form(self) -> struct.Struct:
        locals_ = 3 * (len(self.writers) + self.retention + self.collectors)
        return struct.Struct(f"<8H{self.slots}H{locals_}h")

    def packed(self, world: World) -> bytes:
        """A few dozen bytes that stand for the state: millions of them are kept."""
        return self._form.pack(
            *world[:7],
            world.ended,
            *world.needs,
            *itertools.chain.from_iterable(world.procs),
        )

    def unpacked(self, data: bytes) -> World:
        numbers = self._form.unpack(data)
        tail = numbers[8 + self.slots :]
        procs = tuple(tail[at : at + 3] for at in range(0, len(tail), 3))
        return World(*numbers[:7], numbers[8 : 8 + self.slots], bool(numbers[7]), procs)

    def pack_name(self, bit: int) -> str:
        named = {A: "A", B: "B", C: "C"}
        for writer in self.writers:
            named |= {f: f"{writer.name}-pack{n}" for n, f in enumerate(writer.fresh, 1)}
        return named[bit]

    def slot_name(self, slot: int) -> str:
        for writer in self.writers:
            if slot in writer.slots:
                return f"{writer.name}.{writer.slots.index(slot) + 1}"
        return "old.1"


def make_config(
    name: str,
    *,
    writers: int = 0,
    rewriters: int = 0,
    attempts: int = 1,
    packs: int = A | B | C,
    collectors: int = 1,
    retention: bool = False,
    echoes: bool = False,
    paged: bool = False,
    clears: bool = False,
    long: bool = False,
) -> Config:
    """``writers`` write children of the old point; the first of the ``rewriters`` writes the old
    point anew without ``B`` (where there is none, without ``A``), a second one what the first has
    made. ``packs``: those that are there in the beginning."""
    made: list[Writer] = []
    slot, bit = 1, _FIRST_FRESH
    for number in range(writers + rewriters):
        rewriter = number >= writers
        title = "rewriter" if rewriter else "writer"
        index = number - writers if rewriter else number
        made.append(
            Writer(
                f"{title}{index + 1}",
                tuple(range(slot, slot + attempts)),
                tuple(1 << n for n in range(bit, bit + attempts)),
                packs & (A if B & packs else 0) if rewriter else packs & (A | C),
                (0 if index == 0 else made[-1].slots[0]) if rewriter else None,
            )
        )
        slot, bit = slot + attempts, bit + attempts
    return Config(name, tuple(made), packs, collectors, retention, echoes, paged, clears, long)


@functools.cache
def bits(mask: int) -> tuple[int, ...]:
    return tuple(1 << n for n in range(mask.bit_length()) if mask >> n & 1)
