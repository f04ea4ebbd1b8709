"""The native kernel: compiled from _kernel.c where drvm is installed beside a C compiler.

Use it through ``drvm.chunker.kernel``. Every call releases the GIL once, for all of its work; the
buffers must not change meanwhile, or the answer is worthless (but nothing else is harmed).
"""

from typing import Final

from drvm.chunker.kernel import Buffer

LANES: Final[int]
"""The widest vectors that this CPU has, in words: 16 with AVX-512, 8 with AVX2, else 4."""

def scan(
    data: Buffer,
    key: Buffer,
    known: Buffer | None,
    ids: Buffer,
    state: Buffer,
    lanes: int = ...,
    /,
) -> int:
    """As ``kernel.Scan`` says. ``lanes`` is for tests and measurements: 4, 8 or 16, as far as the
    CPU has them, else ``ValueError``. The ids are the same with all of them."""

def probe(
    table: Buffer,
    row_bytes: int,
    row_keys: int,
    rows: Buffer | None,
    wanted: Buffer,
    places: Buffer,
    /,
) -> int:
    """As ``kernel.Probe`` says."""
