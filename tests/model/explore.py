"""Breadth first through all states: the first violation found has a shortest trace."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.model.processes import DONE, Faults, steps
from tests.model.world import Config, World, bits

NO_FAULTS: Faults = frozenset()

Origins = dict[bytes, tuple[bytes, str, str] | None]
"""Packed state -> (the state before it, who, step)."""


@dataclass(frozen=True)
class Result:
    """``trace`` leads to the violation: (who, step, the world after it). ``steps`` are the names of
    all steps that were taken anywhere."""

    states: int
    violation: str | None
    trace: tuple[tuple[str, str, World], ...] = ()
    steps: frozenset[str] = field(default=frozenset())


def violation(config: Config, world: World) -> str | None:
    """What is wrong with a state, in words.

    1. A good point has all packs that it needs. 2. The old point is good by some generation, unless
    retention ends it. 3. A writer that was told that its point is good has one.
    """
    good = world.manifests & world.ok
    for slot, need in enumerate(world.needs):
        if good >> slot & 1 and need & ~world.packs:
            lost = ", ".join(config.pack_name(bit) for bit in bits(need & ~world.packs))
            return f"{config.slot_name(slot)} is good and lacks {lost}"
    if not world.ended and not good & config.old_slots:
        return "the old point is gone and nobody wanted that"
    for writer, local in zip(config.writers, world.procs, strict=False):
        if writer.replaces is None and local == DONE:
            mine = sum(1 << slot for slot in writer.slots)
            if not good & mine:
                return f"{writer.name} was told that its point is good, and there is none"
    return None


def explore(config: Config, faults: Faults = NO_FAULTS, limit: int = 50_000_000) -> Result:
    """All states, or those up to the first violation. Raises ``MemoryError`` beyond ``limit``."""
    start = config.start()
    came: Origins = {config.packed(start): None}
    queue = deque([(start, config.packed(start))])
    taken: set[str] = set()
    while queue:
        world, here = queue.popleft()
        for who, name, after in steps(config, world, faults):
            key = config.packed(after)
            if key in came:
                continue
            came[key] = (here, who, name)
            taken.add(name)
            problem = violation(config, after)
            if problem is not None:
                trace = _trace(config, came, key)
                return Result(len(came), problem, trace, frozenset(taken))
            queue.append((after, key))
        if len(came) > limit:
            raise MemoryError(f"{config.name}: more than {limit} states")
    return Result(len(came), None, (), frozenset(taken))


def _trace(config: Config, came: Origins, key: bytes) -> tuple[tuple[str, str, World], ...]:
    trace = []
    while (before := came[key]) is not None:
        trace.append((before[1], before[2], config.unpacked(key)))
        key = before[0]
    return tuple(reversed(trace))
