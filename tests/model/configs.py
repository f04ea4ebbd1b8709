"""Who works at once. Each configuration is small enough to be run to its end."""

from __future__ import annotations

from tests.model.world import A, B, C, Config, make_config

CONFIGS: dict[str, Config] = {
    config.name: config
    for config in (
        make_config("writer", writers=1, attempts=2, packs=C, clears=True),
        make_config("two-collectors", writers=1, packs=C, collectors=2, echoes=True),
        make_config("two-writers", writers=2, packs=C),
        make_config("retention", writers=1, packs=A | C, retention=True, clears=True),
        make_config("rewriter", rewriters=1, packs=A | B, retention=True, echoes=True),
        make_config("rewriter-two-collectors", rewriters=1, packs=A | B, collectors=2, clears=True),
        make_config("child-and-rewriter", writers=1, rewriters=1, packs=A, retention=True),
        make_config("pages", writers=1, packs=C, collectors=2, paged=True),
        make_config("pages-retention", writers=1, packs=A, retention=True, paged=True),
        make_config(
            "child-and-rewriter-clearing",
            writers=1,
            rewriters=1,
            packs=A,
            retention=True,
            clears=True,
            long=True,
        ),
        make_config("retries", writers=1, attempts=2, packs=C, collectors=2, long=True),
        make_config("late-duplicates", writers=1, attempts=2, packs=C, echoes=True, long=True),
        make_config("second-rewriter", rewriters=2, packs=A | B, long=True),
    )
}
