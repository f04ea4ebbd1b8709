"""Hooks in levels: added in memory, written as runs, merged so that there are never many.

From the youngest run to the oldest each is at least four times as heavy as the one before, so
adding costs little however many hooks there are, and a look-up asks a dozen runs at most. Young
runs are dense, up to ``dense_hooks``: a small repository, and what was stored last, is found
exactly. The small runs are held in memory; of a large one only the first keys of its pages are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from drvm.core.units import MIB
from drvm.repository.index.filerun import FileRun
from drvm.repository.index.hooks import (
    HOOK_BYTES,
    MAX_SEGMENTS,
    SEGMENT_BITS,
    Keys,
    MemoryRun,
    Names,
    PackHooks,
    Run,
    judge,
    make_run,
    merge,
    name_at,
    place_in,
    weight,
)
from drvm.repository.index.runs import RunFiles

DENSE_HOOKS = 1 << 20
"""4 GiB of blocks."""
_GROWTH = 4
_FLUSH_HOOKS = 1 << 18
_SESSION_MERGE = 1 << 22
"""Larger merges wait for ``sync``, which no frozen guest waits for: a second at most."""
_ELSE_BYTES = 16 * MIB
"""What is young, the filter, segments that were just used, work."""
_FILTER_BITS = 22
_FILTER_SHIFT = np.uint64(64 - _FILTER_BITS)


class Levels:
    """One thread at a time. ``files`` is ``None`` where nothing may be written: then all is in
    memory, as it is where writing fails.

    ``memory_bytes`` is for all of it; what must be there is a quarter of 64 MiB, and 0.2 MB for
    each TiB. A merge takes 100 bytes a pack more while it lasts.
    """

    def __init__(
        self, files: RunFiles | None, memory_bytes: int, dense_hooks: int = DENSE_HOOKS
    ) -> None:
        self._files = files
        self._memory_bytes = memory_bytes
        self.dense_hooks = dense_hooks
        self._young: list[MemoryRun] = []  # youngest first, as all lists of runs here
        self._runs: list[Run] = []
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)  # of keys in dense runs

    def __bool__(self) -> bool:
        return bool(self._young or self._runs)

    def add(self, packs: Sequence[PackHooks]) -> None:
        run = make_run(packs, dense=self.dense_hooks > 0)
        self._note(run)
        group: list[MemoryRun] = [run]
        while self._young and weight(self._young[0]) < 2 * sum(map(weight, group)):
            group.append(self._young.pop(0))
        merged = merge(group, dense_hooks=self.dense_hooks).in_memory() if group[1:] else run
        self._young.insert(0, merged)
        if sum(map(weight, self._young)) > _FLUSH_HOOKS:
            self.flush()

    def flush(self) -> None:
        """Write what is young."""
        if self._young:
            self._runs.insert(0, self._merged(self._young))
            self._young = []
            self._settle(_SESSION_MERGE)
            self._share_memory()

    def sync(self, present: Names, shunned: frozenset[bytes]) -> list[bytes]:
        """Only what is ``present`` and not ``shunned`` is found from now on, also by what other
        processes wrote meanwhile. Returns what is present, not shunned, and in no run."""
        if self._files is not None:
            known = [run for run in self._runs if isinstance(run, FileRun)]
            in_memory = [run for run in self._runs if not run.file]
            self._runs = [*in_memory, *self._files.load(known)]
        self._share_memory()
        seen = np.zeros(len(present), dtype=np.bool_)
        for run in list(self._all()):
            with self._guarded(run):
                judge(run, present, seen)
        self.shun(shunned)
        self._settle(None)
        self._share_memory()
        self._filter[:] = False
        for run in self._all():
            if run.dense:
                with self._guarded(run):
                    self._note(run)
        unknown = (name_at(present, number) for number in np.flatnonzero(~seen).tolist())
        return [name for name in unknown if name not in shunned]

    def shun(self, names: Sequence[bytes] | frozenset[bytes] | set[bytes]) -> None:
        for run in list(self._all()):
            for name in names:
                with self._guarded(run):
                    number = place_in(run, name)
                    if number is not None:
                        run.dead[number] = True

    def knows(self, name: bytes) -> bool:
        for run in list(self._all()):
            with self._guarded(run):
                number = place_in(run, name)
                if number is not None and not run.dead[number]:
                    return True
        return False

    def known(self) -> set[bytes]:
        """The packs that a look-up may find."""
        found = set()
        for run in list(self._all()):
            with self._guarded(run):
                _, values = run.pages(0, len(run.fence))
                packs = np.unique(values >> SEGMENT_BITS)
                found |= {run.name(pack) for pack in packs.tolist() if not run.dead[pack]}
        return found

    def probe(self, keys: Keys, *, dense_only: bool) -> Iterator[tuple[bytes, int]]:
        """(pack, segment) that hooks with these keys name, each once a run. A key that a younger
        run has is not looked for in older ones."""
        if dense_only and any(run.dense for run in self._all()):
            keys = keys[self._filter[keys >> _FILTER_SHIFT]]
        for run in [run for run in self._all() if run.dense or not dense_only]:
            if not len(keys):
                return
            with self._guarded(run):
                hit, values = run.probe(keys)
                pack = values >> SEGMENT_BITS
                alive = pack < len(run.dead)
                alive[alive] = ~run.dead[pack[alive]]
                keys = np.delete(keys, hit[alive])
                for value in np.unique(values[alive]).tolist():
                    yield run.name(value >> SEGMENT_BITS), value & (MAX_SEGMENTS - 1)

    def clear(self) -> None:
        self._young, self._runs = [], []
        self._filter[:] = False
        if self._files is not None:
            with contextlib.suppress(OSError):
                self._files.clear()

    def size(self) -> tuple[int, int, int, int]:
        """Runs, packs, hooks, bytes of files; before the first ``sync`` of all files."""
        runs: list[Run] = list(self._all())
        if not runs and self._files is not None:
            runs += self._files.load()
        packs = sum(int((~run.dead).sum()) for run in runs)
        on_disk = self._files.size_bytes() if self._files is not None else 0
        return len(runs), packs, sum(run.count for run in runs), on_disk

    # -- inside -------------------------------------------------------------------------------
    def _all(self) -> Iterator[Run]:
        yield from self._young
        yield from self._runs

    def _note(self, run: Run) -> None:
        keys, _ = run.pages(0, len(run.fence))
        self._filter[keys >> _FILTER_SHIFT] = True

    @contextlib.contextmanager
    def _guarded(self, run: Run) -> Iterator[None]:
        """A run whose file turns out to be damaged goes: its packs are unknown at the next
        ``sync``, and so read again."""
        try:
            yield
        except ValueError:
            self._runs = [other for other in self._runs if other is not run]
            if self._files is not None:
                self._files.remove(run.file)

    def _settle(self, most: int | None) -> None:
        """Merge what is out of proportion, up to so much at a time."""
        if self._group(most) is None:
            return
        if self._files is None:
            self._merge_all(most)
            return
        with contextlib.suppress(OSError), self._files.merging() as may:
            if may:
                self._merge_all(most)

    def _merge_all(self, most: int | None) -> None:
        while (group := self._group(most)) is not None:
            runs = self._runs[group]
            gone = [run.file for run in runs if run.file and not self._has(run)]
            if gone:  # merged by another process: the next ``sync`` takes that up
                return
            try:
                self._runs[group] = [self._merged(runs)]
            except ValueError:
                for run in runs:
                    with self._guarded(run):
                        run.pages(0, len(run.fence))
                return

    def _has(self, run: Run) -> bool:
        return self._files is not None and self._files.has(run.file)

    def _group(self, most: int | None) -> slice | None:
        """The youngest runs that should be one."""
        weights = [max(1, weight(run)) for run in self._runs]
        for first in range(len(weights)):
            total, end = weights[first], first + 1
            while end < len(weights) and weights[end] < _GROWTH * total:
                total += weights[end]
                end += 1
            if end > first + 1 and (most is None or total <= most):
                return slice(first, end)
            run = self._runs[first]
            if most is None and run.dead.any() and run.dead.mean() >= 0.5:
                return slice(first, first + 1)
        return None

    def _merged(self, runs: Sequence[Run]) -> Run:
        """One run of these, in a file if that can be. Raises ``OSError`` where it can't and some
        of them are in files, which then stay: together they may be larger than any memory."""
        sequence = 1 + max((run.sequence for run in self._runs), default=0)
        if len(runs) and runs[0] in self._runs:
            sequence = runs[0].sequence
        if self._files is not None:
            sources = [run.file for run in runs if run.file]
            for run in runs:
                if isinstance(run, FileRun):
                    run.release()  # its memory is for the filter of the new one
            merged = merge(runs, dense_hooks=self.dense_hooks)
            try:
                return self._files.write(merged, sequence, sources)
            except OSError:
                if sources:
                    raise
        run = merge(runs, dense_hooks=self.dense_hooks).in_memory()
        run.sequence = sequence
        return run

    def _share_memory(self) -> None:
        """Hold the smallest runs, and the filters of others, in what the rest leaves."""
        left = self._memory_bytes - _ELSE_BYTES
        left -= sum(run.fence.nbytes + run.dead.nbytes for run in self._runs)
        for run in sorted(self._runs, key=lambda run: run.count):
            if isinstance(run, FileRun):
                with self._guarded(run):
                    if run.count * HOOK_BYTES <= left:
                        left -= run.count * HOOK_BYTES
                        run.hold()
                    elif run.filter_bytes <= left and run.count <= 8 * run.filter_bytes:
                        left -= run.filter_bytes
                        run.hold_filter()
                    else:
                        run.release()
