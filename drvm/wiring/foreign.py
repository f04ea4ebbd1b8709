"""Points that this host did not write."""

from __future__ import annotations

from drvm.core.text import printable
from drvm.repository.manifest import Manifest
from drvm.wiring.assembly import Wiring


def foreign_words(wiring: Wiring, manifest: Manifest) -> str:
    """What people must know of a point that this host did not write; empty for its own. Whoever
    holds the keys can write points of any machine, in any name."""
    if wiring.repository().is_own(manifest):
        return ""
    if manifest.host == wiring.writer:
        words = f"says that {manifest.host} wrote it, which this host's key does not prove"
    else:
        words = f"was written by another host: {manifest.host}"
    return printable(f"point {manifest.id} {words}", 1000)
