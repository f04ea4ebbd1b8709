"""Planted mistakes, each of which loses data, and where it shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``config``: in which configuration it is found."""

    name: str
    config: str
    text: str


FAULTS: dict[str, Fault] = {
    name: Fault(name, config, text)
    for name, config, text in (
        ("writer-without-check", "writer", "the writer creates its final without a look"),
        ("packs-listed-before-condemned", "writer", "the writer lists packs/ before condemned/"),
        ("check-before-manifest", "writer", "the writer looks before its manifest is there"),
        ("only-deduplicated-checked", "retention", "only packs found by the index are looked up"),
        ("only-condemned-checked", "writer", "the writer does not look whether packs are there"),
        ("only-presence-checked", "writer", "the writer does not look for tombstones"),
        ("no-new-check-after-retry", "writer", "the second attempt creates its final unlooked"),
        (
            "generation-reused",
            "late-duplicates",
            "the second attempt overwrites the manifest of the first",
        ),
        (
            "pack-name-reused",
            "retries",
            "a lost pack is stored again under its old name",
        ),
        ("final-overwritten", "writer", "the final is put, not created: two deciders"),
        ("lost-final-ignored", "writer", "a writer that lost its final says that it won"),
        ("aborted-final-removed", "writer", "finals that say aborted are cleaned up"),
        ("points-listed-before-condemned", "writer", "the collector lists points/ first"),
        ("pending-not-needed", "writer", "points without a final don't count"),
        ("shared-subtrees-not-counted", "retention", "only what a point itself wrote counts"),
        ("no-tombstones", "writer", "packs that nobody needs are deleted at once"),
        ("tombstone-removed-first", "writer", "the tombstone goes before its pack"),
        ("pardon", "two-collectors", "a tombstone is taken off a pack that is needed again"),
        ("young-packs-collected", "two-collectors", "no regard for late duplicates of packs"),
        ("young-point-ended", "rewriter", "no regard for late duplicates of manifests"),
        ("rewriter-without-check", "rewriter", "the rewriter creates its final without a look"),
        ("rewriter-deletes-first", "rewriter-two-collectors", "the old point goes first"),
        ("rewriter-deletes-before-final", "rewriter-two-collectors", "it goes before the final"),
    )
}
