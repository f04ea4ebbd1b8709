"""A daemon opens the repository in several threads at once."""

from __future__ import annotations

import threading

from drvm.repository.keys import _stretch

LIMIT_S = 60.0


def test_several_threads_stretch_passphrases_at_once() -> None:
    """Two derivations at once wait for each other for ever: OpenSSL shares its threads (
    cryptography 50)."""
    found: list[bytes] = []

    def stretch() -> None:
        found.append(_stretch(b"a passphrase", bytes(32), 1024, 1, 4))

    threads = [threading.Thread(target=stretch, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(found) == 16 and len(set(found)) == 1
