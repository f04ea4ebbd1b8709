"""What points take in the store, against fixed chunks: exact, so nothing is repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench import floors, product
from bench.harness import Bench, Figure, Run, measure
from drvm.core.units import KIB, MIB

ORDER = ("A", "F", "E", "C", "G")
_MACHINES = {"A": "server", "E": "server", "C": "copy", "F": "database", "G": "database"}
"""E and G are later points of the machines of A and F."""


def stored(bench: Bench) -> list[Figure]:
    """One repository takes all five disks; whatever lies in the store then is counted."""
    data = {name: bench.disk(name) for name in ORDER}
    images = list(data.values())

    def added(count: Run) -> dict[str, float]:
        return dict(measure(count).told)

    by_chunk = {
        size: added(lambda size=size: _by_name(floors.fixed_chunks(images, size)))  # type: ignore[misc]
        for size in (64 * KIB, 4 * MIB)
    }
    least = added(lambda: _by_name(floors.new_blocks(images)))
    changed, least["G"] = floors.changed_blocks(data["F"], data["G"])
    ours = added(lambda: _ours(data, bench.scratch / "drvm"))
    return figures(ours, by_chunk[64 * KIB], by_chunk[4 * MIB], changed, least)


def figures(
    ours: Mapping[str, float],
    small: Mapping[str, float],
    large: Mapping[str, float],
    changed: float,
    least: Mapping[str, float],
) -> list[Figure]:
    """Bytes added by each disk: by drvm, in chunks of 64 KiB, of 4 MiB, and at least, by blocks;
    ``changed`` is how many bytes differ between F and G."""

    def ratio(names: str, than: Mapping[str, float]) -> tuple[float, str]:
        mine, other = (sum(added[name] for name in names) for added in (ours, than))
        return mine / other, f"{mine / MIB:.1f} : {other / MIB:.1f} MiB"

    judged = []
    for name, names, than, limit in (
        ("stored E+C+G : fixed 64 KiB", "ECG", small, 0.20),
        ("stored E+C+G : fixed 4 MiB", "ECG", large, 0.12),
        ("stored C : fixed 64 KiB", "C", small, 0.10),
        ("stored, all five : fixed 64 KiB", "AFECG", small, None),
        ("stored, all five : fixed 4 MiB", "AFECG", large, None),
        ("stored E : fixed 64 KiB", "E", small, None),
        ("stored E : fixed 4 MiB", "E", large, None),
        ("stored G : fixed 64 KiB", "G", small, None),
        ("stored G : fixed 4 MiB", "G", large, None),
    ):
        found, note = ratio(names, than)
        judged.append(Figure(name, found, limit, note=note))
    for name, title, limit, of in (
        ("G", "stored G : changed blocks, zstd -1", 1.15, f", of {changed / MIB:.1f} MiB changed"),
        ("E", "stored E : its new blocks, zstd -1", None, ""),
    ):
        note = f"{ours[name] / MIB:.2f} : {least[name] / MIB:.2f} MiB{of}"
        judged.append(Figure(title, ours[name] / least[name], limit, note=note))
    return judged


def _ours(data: Mapping[str, Path], directory: Path) -> dict[str, float]:
    repository = product.in_directory(directory)
    before, added = product.stored_bytes(repository.store), {}
    for name in ORDER:
        product.back_up(repository, data[name], _MACHINES[name])
        after = product.stored_bytes(repository.store)
        added[name], before = float(after - before), after
    return added


def _by_name(added: list[int]) -> dict[str, float]:
    return {name: float(count) for name, count in zip(ORDER, added, strict=True)}
