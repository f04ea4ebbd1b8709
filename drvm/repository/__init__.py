"""Level 2: points, disk maps, packs, the index and the keys, over a store.

The format on disk is docs/FORMAT.md; the order of writes and reads that keeps it safe beside a
collector is in ``points.py``.
"""
