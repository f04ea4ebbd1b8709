"""Runs of hooks on disk: whole or gone, whoever dies or works beside."""

from __future__ import annotations

import fcntl
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.repository.index import hooks as hooks_module
from drvm.repository.index import levels as levels_module
from drvm.repository.index import runs as runs_module
from drvm.repository.index.filerun import KeyFilter
from drvm.repository.index.hooks import PAGE_HOOKS, judge, make_run, merge, sorted_names
from drvm.repository.index.hooks import PackHooks as Hooks
from drvm.repository.index.levels import Levels
from drvm.repository.index.runs import RunFiles
from tests.unit.repository.faults import within
from tests.unit.repository.test_index import REPOSITORY, noise_ids


def pack(number: int, hooks: int) -> Hooks:
    keys = noise_ids(hooks, number)[:, 0] & ~np.uint64(15)
    return Hooks(name(number), keys, np.arange(hooks, dtype=np.int64) % 256)


def name(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(28)  # ends in zeroes, which numpy drops


def files(directory: Path, repository: bytes = REPOSITORY) -> RunFiles:
    return RunFiles(directory, repository)


def levels(directory: Path, *, memory_bytes: int = 0, dense: int = 0) -> Levels:
    return Levels(files(directory), memory_bytes, dense)


def paths(directory: Path, suffix: str = ".run") -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))


def finds(found: Levels, *packs: Hooks) -> bool:
    """Every hook of these packs leads to its pack and segment."""
    for one in packs:
        wanted = {(one.name, segment) for segment in one.segments.tolist()}
        if set(found.probe(one.keys, dense_only=False)) != wanted:
            return False
    return True


def present(*packs: Hooks) -> np.ndarray:
    return sorted_names(b"".join(one.name for one in packs))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 2 * PAGE_HOOKS + 5), min_size=1, max_size=5),
    st.booleans(),
    st.sets(st.integers(0, 4)),
)
def test_runs_on_disk_find_what_runs_in_memory_find(tmp_path_factory, counts, held, gone):
    directory = tmp_path_factory.mktemp("index")
    packs = [pack(number, count) for number, count in enumerate(counts)]
    for one in packs:
        files(directory).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    found = levels(directory, memory_bytes=1 << 30 if held else 0)
    left = [one for number, one in enumerate(packs) if number not in gone]
    assert found.sync(present(*left), frozenset()) == []
    assert finds(found, *left)
    assert not any(list(found.probe(p.keys, dense_only=False)) for p in packs if p not in left)


def test_many_small_additions_leave_few_runs_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(levels_module, "_FLUSH_HOOKS", 50)
    found = levels(tmp_path)
    packs = [pack(number, 20) for number in range(200)]
    for one in packs:
        found.add([one])
    found.flush()
    assert len(paths(tmp_path)) <= 6
    assert paths(tmp_path, ".partial") == []
    again = levels(tmp_path)
    assert again.sync(present(*packs), frozenset()) == []
    assert finds(found, *packs)
    assert finds(again, *packs)


def test_a_merge_drops_dead_packs_and_keeps_the_younger_of_two_hooks(tmp_path):
    old, young = pack(1, 3000), pack(2, 3000)
    shared = Hooks(young.name, np.append(young.keys, old.keys[:5]), np.arange(3005) % 256)
    found = levels(tmp_path)
    found.add([old])
    found.flush()
    found.add([Hooks(shared.name, np.sort(shared.keys), shared.segments)])
    hit = {where for where, _ in found.probe(old.keys[:5], dense_only=False)}
    assert hit == {young.name}
    found.flush()
    found.sync(present(young), frozenset())
    (path,) = paths(tmp_path)
    assert path.stat().st_size < 2 * 3005 * 12
    assert levels(tmp_path).sync(present(old, young), frozenset()) == [old.name]


DAMAGES = ["cut", "empty", "header", "lists", "renamed", "foreign", "directory"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_or_foreign_run_is_thrown_away_and_its_packs_are_unknown(damage, tmp_path):
    one, two = pack(1, 5000), pack(2, 100)
    for which in (one, two):
        files(tmp_path).write(merge([make_run([which], dense=False)], dense_hooks=0), 1)
    path = max(paths(tmp_path), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.unlink()
    if damage == "renamed":
        (tmp_path / f"{'ab' * 16}.run").write_bytes(whole)
    elif damage == "foreign":
        files(tmp_path, b"\x01" * 16).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    elif damage == "directory":
        path.mkdir()
    else:
        at = {"cut": 0, "empty": 0, "header": 40, "lists": 130}[damage]
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes({"cut": whole[:-1], "empty": b""}.get(damage, flipped))
    found = levels(tmp_path)
    assert found.sync(present(one, two), frozenset()) == [one.name]
    assert finds(found, two)
    if damage != "directory":
        assert len(paths(tmp_path)) == 1


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_a_damaged_page_costs_the_run_and_the_next_listing_says_so(memory_bytes, tmp_path):
    one = pack(1, 5000)
    files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    (path,) = paths(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[-8 * 8 - 3 * 8192 + 100] ^= 1
    path.write_bytes(whole)
    found = levels(tmp_path, memory_bytes=memory_bytes)
    found.sync(present(one), frozenset())
    list(found.probe(one.keys, dense_only=False))
    assert paths(tmp_path) == []
    assert found.sync(present(one), frozenset()) == [one.name]


def test_a_fifo_among_the_runs_holds_nobody_up(tmp_path):
    one = pack(1, 100)
    files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    os.mkfifo(tmp_path / f"{bytes(16).hex()}.run")
    found = levels(tmp_path)
    within(10, lambda: found.sync(present(one), frozenset()))
    assert finds(found, one)


def test_a_run_that_cannot_be_read_to_its_end_has_shown_no_pack(monkeypatch):
    """Else what it knew would be in no run, and not be read again either."""
    packs = [pack(number, 3) for number in range(4)]
    run, seen = make_run(packs, dense=False), np.zeros(4, dtype=np.bool_)
    names = run.names

    def torn(first: int, last: int) -> np.ndarray:
        if first == 2:
            raise ValueError("a page is damaged")
        return names(first, last)

    monkeypatch.setattr(hooks_module, "_NAMES_AT_ONCE", 2)
    monkeypatch.setattr(run, "names", torn)
    with pytest.raises(ValueError, match="damaged"):
        judge(run, present(*packs), seen)
    assert not seen.any()
    monkeypatch.setattr(run, "names", names)
    judge(run, present(*packs), seen)
    assert seen.all()


class Died(BaseException):
    pass


CALLS = ["open", "pwrite", "fsync", "rename", "sync_directory", "unlink"]


def dying(monkeypatch: pytest.MonkeyPatch, call: str, nth: int) -> list[int]:
    """The process ends at the ``nth`` such call: nothing behind it happens, as after SIGKILL."""
    made = [0]

    def wrap(real):
        def called(*args, **kwargs):
            if made[0] >= nth or made[0] < 0:
                made[0] = -1
            if made[0] < 0:
                raise Died
            made[0] += call == real.__name__
            return real(*args, **kwargs)

        return called

    from drvm.repository.index import filerun, runs

    for module, names in ((os, ("open", "pwrite", "fsync")), (Path, ("rename", "unlink"))):
        for each in names:
            monkeypatch.setattr(module, each, wrap(getattr(module, each)))
    monkeypatch.setattr(runs, "sync_directory", wrap(runs.sync_directory))
    assert filerun.os is os
    return made


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("call", CALLS)
def test_a_death_at_any_call_leaves_an_index_that_is_used_or_made_anew(call, nth, tmp_path):
    packs = [pack(number, 300) for number in range(4)]
    for one in packs[:3]:
        files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, call, nth)
        try:
            doomed = levels(tmp_path)
            doomed.sync(present(*packs), frozenset())
            doomed.add([packs[3]])
            doomed.flush()
        except Died:
            pass
    found = levels(tmp_path)
    unknown = found.sync(present(*packs), frozenset())
    assert unknown in ([], [packs[3].name])  # what was written before is never lost
    for one in packs:
        if one.name in unknown:
            found.add([one])
    found.flush()
    assert finds(found, *packs)
    assert finds(levels_after_sync(tmp_path, packs), *packs)
    assert paths(tmp_path, ".partial") == []


def levels_after_sync(directory: Path, packs: list[Hooks]) -> Levels:
    found = levels(directory)
    assert found.sync(present(*packs), frozenset()) == []
    return found


def test_two_processes_add_beside_each_other_and_a_reader_keeps_what_it_opened(tmp_path):
    packs = [pack(number, 500) for number in range(12)]
    one, two = levels(tmp_path), levels(tmp_path)
    everything = present(*packs)
    one.sync(everything, frozenset())
    two.sync(everything, frozenset())
    for number, mine in enumerate(packs[:6]):
        one.add([mine])
        one.flush()
        two.add([packs[6 + number]])
        two.flush()
    assert finds(one, *packs[:6])
    assert finds(two, *packs[6:])
    third = levels_after_sync(tmp_path, packs)  # merges what both wrote
    assert finds(third, *packs)
    assert finds(one, *packs[:6])  # whose files are gone
    assert one.sync(everything, frozenset()) == []
    assert finds(one, *packs)


def test_where_another_process_merges_only_that_is_left_out(tmp_path):
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found = levels(tmp_path)
    packs = [pack(number, 300) for number in range(4)]
    for one in packs:
        found.add([one])
        found.flush()
    assert len(paths(tmp_path)) == 4
    assert finds(found, *packs)
    os.close(lock)
    found.flush()
    assert levels_after_sync(tmp_path, packs)
    assert len(paths(tmp_path)) == 1


def test_a_file_that_is_being_written_is_not_removed_by_another_process(tmp_path):
    working = tmp_path / f"{'cd' * 16}.partial"
    abandoned = tmp_path / f"{'ef' * 16}.partial"
    abandoned.touch()
    descriptor = os.open(working, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with files(tmp_path).merging() as may:
        assert may
    assert paths(tmp_path, ".partial") == [working]
    os.close(descriptor)


def test_a_directory_that_cannot_be_written_leaves_the_hooks_in_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    found = levels(blocked / "index")
    packs = [pack(number, 3000) for number in range(3)]
    for one in packs:
        found.add([one])
        found.flush()
    assert finds(found, *packs)
    assert found.sync(present(*packs), frozenset()) == []
    assert finds(found, *packs)


def torn_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    write = runs_module.write_run

    def torn(descriptor: int, *rest: object) -> None:
        write(descriptor, *rest)
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 1)

    monkeypatch.setattr(runs_module, "write_run", torn)


def test_what_was_written_and_is_damaged_at_once_stays_in_memory(tmp_path, monkeypatch):
    """A backup flushes behind its final: that must not fail because of a cache."""
    torn_writes(monkeypatch)
    found = levels(tmp_path)
    found.add([pack(1, 500)])
    found.flush()
    assert finds(found, pack(1, 500))
    assert paths(tmp_path) == []


def test_runs_in_files_that_cannot_be_merged_stay_in_files(tmp_path, monkeypatch):
    packs = [pack(number, 500) for number in (1, 2)]
    for one in packs:
        files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    torn_writes(monkeypatch)
    found = levels(tmp_path)
    assert found.sync(present(*packs), frozenset()) == []
    assert finds(found, *packs)
    assert len(paths(tmp_path)) == 2
    assert all(run.file for run in found._runs)


def test_runs_share_the_memory_that_pages_are_read_into(tmp_path):
    packs = [pack(number, 3 * PAGE_HOOKS) for number in range(20)]
    for number, one in enumerate(packs):
        files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), number)
    tracemalloc.start()
    runs = files(tmp_path).load()
    assert sum(len(run.probe(np.sort(packs[0].keys))[0]) for run in runs) == 3 * PAGE_HOOKS
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20


@given(st.sets(st.integers(0, 2**64 - 1), max_size=300), st.integers(3, 20), st.integers(1, 5))
def test_a_filter_has_every_key_that_was_added(keys, bits, parts):
    found = KeyFilter(np.zeros(1 << bits - 3, dtype=np.uint8))
    ascending = np.array(sorted(keys), dtype=np.uint64)
    for part in np.array_split(ascending, parts):
        found.add(part)
    assert found.may_have(ascending).tolist() == list(range(len(ascending)))


def test_with_its_filter_a_run_reads_few_pages_for_what_it_does_not_have(tmp_path, monkeypatch):
    one = pack(1, 20 * PAGE_HOOKS)
    files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    (run,) = files(tmp_path).load()
    read: list[object] = []
    real = os.preadv

    def counted(*call: object) -> int:
        read.append(call)
        return real(*call)

    monkeypatch.setattr(os, "preadv", counted)
    absent = np.sort(noise_ids(40, 7)[:, 0])
    assert not len(run.probe(absent)[0])
    without = len(read)
    run.hold_filter()
    assert not len(run.probe(absent)[0])
    assert len(read) - without < without / 2
    assert len(run.probe(np.sort(one.keys))[0]) == len(one.keys)


def test_a_filter_is_held_where_the_run_does_not_fit_and_it_does(tmp_path):
    one = pack(1, 20 * PAGE_HOOKS)
    files(tmp_path).write(merge([make_run([one], dense=False)], dense_hooks=0), 1)
    for room, held, filtered in ((0, False, False), (100, False, True), (200, True, False)):
        found = levels(tmp_path, memory_bytes=levels_module._ELSE_BYTES + room * 1024)
        found.sync(present(one), frozenset())
        (run,) = found._runs
        assert (run._held is not None, run._filter is not None) == (held, filtered)
        assert finds(found, one)


def test_a_run_without_hooks_is_asked_on_disk_and_stays(tmp_path):
    packs = [pack(number, 0) for number in range(3)]
    found = levels(tmp_path)
    found.add(packs)
    found.flush()
    assert list(found.probe(pack(9, 20).keys, dense_only=False)) == []
    assert len(paths(tmp_path)) == 1
    assert found.sync(present(*packs), frozenset()) == []


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_cannot_be_opened_as_a_run_is_as_good_as_absent(kind, tmp_path):
    known, unknown = pack(1, 20), pack(2, 20)
    writer = levels(tmp_path)
    writer.add([known])
    writer.flush()
    stranger = tmp_path / f"{bytes(16).hex()}.run"
    if kind == "link":
        stranger.symlink_to(paths(tmp_path)[0])
    else:
        stranger.mkdir()
    found = levels(tmp_path)
    assert found.sync(present(known, unknown), frozenset()) == [unknown.name]
    assert finds(found, known)
