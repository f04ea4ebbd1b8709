"""The processes of the protocol, step by step. docs/adr/027-collection.md maps them to the code.

Each function yields what its process may do next: (name of the step, the world after it). Whatever
looks at the store or changes it is a step of its own; between two steps anything may happen. That a
process stops for ever needs no step: the others go on in all ways without it. ``faults`` are the
names of planted mistakes, see ``faults.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from tests.model.world import A, C, Config, Local, World, Writer, bits

Step = tuple[str, World]
Then = Callable[[World, Local], World]
Faults = frozenset[str]

STORE, MANIFEST, CONDEMNED, PACKS, FINAL, DELETE_OLD = range(6)

DONE: Local = (-1, 0, 0)
"""A writer that was told that its point is good."""

FAILED: Local = (-2, 0, 0)


def _with(world: World, index: int, local: Local, config: Config) -> tuple[Local, ...]:
    """The processes after one of them moved on. Collectors are alike: their order means nothing."""
    procs = [*world.procs[:index], local, *world.procs[index + 1 :]]
    first = len(procs) - config.collectors
    if index >= first and config.collectors > 1:
        procs[first:] = sorted(procs[first:])
    return tuple(procs)


Order = tuple[tuple[int, int], ...]
"""Steps, each with the mask of what it looks at: a listing in pages is several steps."""


# -- the writer and the rewriter ------------------------------------------------------------------
@functools.cache
def writer_order(config: Config, index: int, attempt: int, faults: Faults) -> Order:
    """(a) packs, (b) manifest, (c) ``condemned/`` completely, then ``packs/``, (e) final."""
    rewrites = config.writers[index].replaces is not None
    packs = config.pages(config.all_packs)
    condemned = [(CONDEMNED, page) for page in packs]
    present = [(PACKS, page) for page in packs]
    check = [*condemned, *present]
    if (
        ("writer-without-check" in faults and not rewrites)
        or ("rewriter-without-check" in faults and rewrites)
        or ("no-new-check-after-retry" in faults and attempt)
    ):
        check = []
    elif "packs-listed-before-condemned" in faults:
        check = [*present, *condemned]
    elif "only-condemned-checked" in faults:
        check = condemned
    elif "only-presence-checked" in faults:
        check = present
    manifest, final, delete = (MANIFEST, -1), (FINAL, -1), (DELETE_OLD, -1)
    order = [(STORE, -1), manifest, *check, final]
    if "check-before-manifest" in faults:
        order = [(STORE, -1), *check, manifest, final]
    if not rewrites:
        return tuple(order)
    if "rewriter-deletes-first" in faults:
        return (delete, *order)
    if "rewriter-deletes-before-final" in faults:
        return (*order[:-1], delete, final)
    return (*order, delete)


def writer_steps(config: Config, index: int, world: World, faults: Faults) -> Iterator[Step]:
    """Local: place in the order, attempt, packs found bad."""
    writer = config.writers[index]
    at, attempt, bad = world.procs[index]
    if at < 0:
        return
    order = writer_order(config, index, attempt, faults)
    step, page = order[at]
    slot = writer.slots[0 if "generation-reused" in faults else attempt]

    def then(changed: World, local: Local) -> World:
        return changed._replace(procs=_with(changed, index, local, config))

    here = (at + 1, attempt, bad) if at + 1 < len(order) else DONE
    need = world.needs[slot]
    checked = need & page & (C if "only-deduplicated-checked" in faults else -1)
    if step == STORE:
        if writer.replaces is not None and not world.manifests >> writer.replaces & 1:
            return  # what it would read is gone
        stored = _store(writer, slot, attempt, bad, world, config, faults)
        yield "pack-stored", then(stored, (at + 1, attempt, 0))
    elif step == MANIFEST:
        created = world._replace(manifests=world.manifests | 1 << slot)
        if config.echoes:
            created = created._replace(manifest_echoes=created.manifest_echoes | 1 << slot)
        yield "manifest-created", then(created, here)
    elif step == CONDEMNED:
        yield "condemned-listed", then(world, (at + 1, attempt, bad | checked & world.condemned))
    elif step == PACKS:
        yield "packs-checked", then(world, (at + 1, attempt, bad | checked & ~world.packs))
    elif step == DELETE_OLD:
        assert writer.replaces is not None
        old = 1 << writer.replaces
        if not world.manifest_echoes & old:  # it was made long ago
            yield "manifest-deleted", then(world._replace(manifests=world.manifests & ~old), here)
    else:
        told = (at + 1, attempt, 0) if at + 1 < len(order) else DONE
        yield from _decide(writer, slot, world, (attempt, bad), told, faults, then)


def _store(
    writer: Writer,
    slot: int,
    attempt: int,
    bad: int,
    world: World,
    config: Config,
    faults: Faults,
) -> World:
    """The fresh pack of this attempt, and what the manifest will say."""
    fresh = writer.fresh[attempt]
    before = world.needs[writer.slots[0]] & ~bad if attempt else writer.base
    if "pack-name-reused" in faults and attempt:
        fresh = bad  # the same content under the same name
    needs = (*world.needs[:slot], before | fresh, *world.needs[slot + 1 :])
    echoes = world.echoes | fresh if config.echoes else world.echoes
    return world._replace(packs=world.packs | fresh, needs=needs, echoes=echoes)


def _decide(
    writer: Writer,
    slot: int,
    world: World,
    local: tuple[int, int],
    told: Local,
    faults: Faults,
    then: Then,
) -> Iterator[Step]:
    """The final is created by create-if-absent: whoever comes first decides. ``told``: what the
    writer does next if it won."""
    attempt, bad = local
    final = 1 << slot
    decided = (world.ok | world.aborted) & final
    last = attempt + 1 == len(writer.slots)
    again = FAILED if last else (0, attempt + 1, bad)
    if bad and "generation-reused" in faults:
        yield "retried", then(world, again)
    elif bad:
        changed = world if decided else world._replace(aborted=world.aborted | final)
        yield "final-aborted", then(changed, again)
    elif "final-overwritten" in faults:
        changed = world._replace(ok=world.ok | final, aborted=world.aborted & ~final)
        yield "final-created", then(changed, told)
    elif not decided:
        yield "final-created", then(world._replace(ok=world.ok | final), told)
    elif "lost-final-ignored" in faults:
        yield "final-lost", then(world, told)
    else:
        yield "final-lost", then(world, FAILED)


# -- the collector --------------------------------------------------------------------------------
LIST_CONDEMNED, LIST_PACKS, LIST_POINTS, READ_FINALS = range(4)

IDLE: Local = (0, 0, 0)
COLLECTING = -3


@functools.cache
def collector_order(config: Config, faults: Faults) -> Order:
    """(a) ``condemned/``, (b) ``packs/``, (c) ``points/``, then finals and pack sets."""
    condemned = [(LIST_CONDEMNED, page) for page in config.pages(config.all_packs)]
    packs = [(LIST_PACKS, page) for page in config.pages(config.all_packs)]
    points = [(LIST_POINTS, page) for page in config.pages((1 << config.slots) - 1)]
    finals = (READ_FINALS, -1)
    if "points-listed-before-condemned" in faults:
        return (*points, finals, *condemned, *packs)
    return (*condemned, *packs, *points, finals)


def collector_steps(config: Config, index: int, world: World, faults: Faults) -> Iterator[Step]:
    """Local: place in the order, packs that may go, and what it knows: points, packs needed, or the
    pack that is half gone. It begins anew for ever, and may be killed anywhere."""
    at, doomed, known = world.procs[index]

    def then(changed: World, local: Local) -> World:
        if local[0] == COLLECTING and not local[1]:
            local = IDLE
        return changed._replace(procs=_with(changed, index, local, config))

    if at:
        yield "killed", then(world, IDLE)
    if at == COLLECTING:
        yield from _collect(doomed, known, world, faults, then)
        return
    order = collector_order(config, faults)
    step, page = order[at]
    if step == LIST_CONDEMNED:
        doomed |= page & (world.packs if "no-tombstones" in faults else world.condemned)
        name = "tombstones-listed"
    elif step == LIST_PACKS:
        young = 0 if "young-packs-collected" in faults else world.packs & world.echoes
        doomed &= ~(page & young)
        name = "packs-listed"
    elif step == LIST_POINTS:
        known |= page & world.manifests
        name = "points-listed"
    else:
        known = _need(world, known, faults)
        name = "finals-read"
        if "pardon" in faults and (pardoned := doomed & known & world.packs):
            world = world._replace(condemned=world.condemned & ~pardoned)
    if at + 1 == len(order):
        at, doomed, known = COLLECTING - 1, doomed & ~known, 0
    yield name, then(world, (at + 1, doomed, known))


def _need(world: World, listed: int, faults: Faults) -> int:
    """The packs of all points that are there and not aborted. Pending ones count."""
    need = 0
    for slot, packs in enumerate(world.needs):
        bit = 1 << slot
        pending = not world.ok & bit
        if not listed & world.manifests & bit or world.aborted & bit:
            continue
        if pending and "pending-not-needed" in faults:
            continue
        shared = A if slot and "shared-subtrees-not-counted" in faults else 0
        need |= packs & ~shared
    return need


def _collect(doomed: int, half: int, world: World, faults: Faults, then: Then) -> Iterator[Step]:
    """Pack after pack: first it, then its tombstone. ``half``: the first of the two is done."""
    pack = doomed & -doomed
    local = (COLLECTING, doomed & ~pack, 0) if half else (COLLECTING, doomed, pack)
    if bool(half) == ("tombstone-removed-first" in faults):
        yield "pack-deleted", then(world._replace(packs=world.packs & ~pack), local)
    else:
        lifted = world._replace(condemned=world.condemned & ~pack)
        yield "tombstone-removed", then(lifted, local)


# -- retention ------------------------------------------------------------------------------------
def retention_steps(config: Config, index: int, world: World, faults: Faults) -> Iterator[Step]:
    """Ends the old point: lists its generations, and deletes one manifest after the other. Local:
    whether it listed, and what it has still to delete."""
    listed, todo, _ = world.procs[index]
    if not listed:
        found = world.manifests & config.old_slots
        yield (
            "manifests-listed",
            world._replace(ended=True, procs=_with(world, index, (1, found, 0), config)),
        )
    for bit in bits(todo):
        if not world.manifest_echoes & bit or "young-point-ended" in faults:
            yield (
                "manifest-deleted",
                world._replace(
                    manifests=world.manifests & ~bit,
                    procs=_with(world, index, (1, todo & ~bit, 0), config),
                ),
            )


# -- everybody else -------------------------------------------------------------------------------
def outside_steps(config: Config, world: World, faults: Faults) -> Iterator[Step]:
    """Tombstones on any pack at any time; pending generations given up at any time, by winning
    their final; late duplicates, until they can come no more."""
    for pack in bits(world.packs & ~world.condemned):
        yield "pack-condemned", world._replace(condemned=world.condemned | pack)
    for slot in bits(world.manifests & ~world.aborted):
        if not world.ok & slot:
            yield "generation-given-up", world._replace(aborted=world.aborted | slot)
    for slot in bits(world.manifests & world.aborted if config.clears else 0):
        yield "aborted-manifest-removed", world._replace(manifests=world.manifests & ~slot)
    if "aborted-final-removed" in faults:
        for slot in bits(world.aborted):
            yield "final-removed", world._replace(aborted=world.aborted & ~slot)
    for pack in bits(world.echoes):
        if not world.packs & pack:
            yield "pack-stored-late", world._replace(packs=world.packs | pack)
        yield "duplicates-died-out", world._replace(echoes=world.echoes & ~pack)
    for slot in bits(world.manifest_echoes):
        if not world.manifests & slot:
            yield "manifest-created-late", world._replace(manifests=world.manifests | slot)
        if "generation-reused" in faults:
            yield from _overwrite(config, world, slot)
        yield "duplicates-died-out", world._replace(manifest_echoes=world.manifest_echoes & ~slot)


def _overwrite(config: Config, world: World, bit: int) -> Iterator[Step]:
    """The manifest of the first attempt once more, over that of the second."""
    for writer in config.writers:
        slot = writer.slots[0]
        first = writer.base | writer.fresh[0]
        if 1 << slot == bit and world.manifests & bit and world.needs[slot] != first:
            needs = (*world.needs[:slot], first, *world.needs[slot + 1 :])
            yield "manifest-overwritten-late", world._replace(needs=needs)


def steps(config: Config, world: World, faults: Faults) -> Iterator[tuple[str, str, World]]:
    """(who, step, the world after it)."""
    index = 0
    for index, writer in enumerate(config.writers):
        for name, after in writer_steps(config, index, world, faults):
            yield writer.name, name, after
    index = len(config.writers)
    if config.retention:
        for name, after in retention_steps(config, index, world, faults):
            yield "retention", name, after
    for number in range(config.collectors):
        at = len(world.procs) - config.collectors + number
        if number and world.procs[at] == world.procs[at - 1]:
            continue  # the same as the one before
        for name, after in collector_steps(config, at, world, faults):
            yield f"collector{number + 1}", name, after
    for name, after in outside_steps(config, world, faults):
        yield "anybody", name, after
