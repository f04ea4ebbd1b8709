"""Whether two pieces were ever sealed under one key and nonce: AES-GCM is broken by that."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from drvm.repository.crypto import SALT_BYTES, ObjectCipher

EXAMPLE_SALT = bytes([0x5A]) * SALT_BYTES
"""Of the vectors in docs/FORMAT.md, which are computed again and again."""


class Nonces:
    """Remembers 8 bytes of each (key, nonce). The key of a piece follows from the header of its
    cipher: purpose, repository and salt."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()
        self.sealed = 0

    def note(self, header: bytes, domain: int, number: int) -> None:
        if header.endswith(EXAMPLE_SALT):
            return
        text = header + domain.to_bytes(4, "big") + number.to_bytes(8, "big")
        key = hashlib.blake2b(text, digest_size=8).digest()
        with self._lock:
            self.sealed += 1
            assert key not in self._seen, "two pieces are sealed under one key and nonce"
            self._seen.add(key)


@contextmanager
def watched(nonces: Nonces) -> Iterator[None]:
    """While it lasts, every piece that this process seals is noted."""

    def noting(seal: Callable[..., Any]) -> Callable[..., Any]:
        def sealing(self: ObjectCipher, domain: int, number: int, *rest: Any) -> Any:
            nonces.note(self._header, domain, number)
            return seal(self, domain, number, *rest)

        return sealing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectCipher, "seal", noting(ObjectCipher.seal))
        patch.setattr(ObjectCipher, "seal_into", noting(ObjectCipher.seal_into))
        yield
