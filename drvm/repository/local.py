"""What a repository keeps on this host: a cache of what the store can tell again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drvm.chunker.blocks import BlockHasher
from drvm.repository.crypto import Sealer
from drvm.repository.index.levels import Levels
from drvm.repository.index.runs import RunFiles
from drvm.repository.index.sparse import IndexLimits, SparseIndex
from drvm.repository.index.tables import IdTables
from drvm.repository.packs import PackReader
from drvm.repository.trust import DedupTrust, Trust


@dataclass(frozen=True, slots=True)
class Local:
    """``fingerprints``, ``drills``: the directories they are in; ``None``: nothing is kept."""

    tables: IdTables
    trust: Trust
    index: SparseIndex
    fingerprints: Path | None
    drills: Path | None


def open_local(
    cache_dir: Path | None,
    repository_id: str,
    sealer: Sealer,
    packs: PackReader,
    hasher: BlockHasher,
    limits: IndexLimits,
    rule: DedupTrust,
) -> Local:
    """Below a directory of the repository's own: ``ids/`` with the id tables of packs, ``index/``
    with the hooks, ``trusted/`` with what was verified, ``fingerprints/``, ``drills/`` with
    their records as they are sealed."""

    def below(name: str) -> Path | None:
        return cache_dir / repository_id / name if cache_dir is not None else None

    tables = IdTables(below("ids"), sealer.id_table_key(), packs.ids, limits.cache_bytes)
    trust = Trust(rule, packs, hasher, tables, sealer.trust_key(), below("trusted"))
    runs = below("index")
    files = RunFiles(runs, bytes.fromhex(repository_id)) if runs is not None else None
    index = SparseIndex(Levels(files, limits.memory_bytes), tables, trust)
    return Local(tables, trust, index, below("fingerprints"), below("drills"))
