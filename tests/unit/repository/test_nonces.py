"""The guard that watches over all tests (tests/nonces.py) sees what it is to see."""

import pytest

from drvm.repository.crypto import MasterKeys, Sealer
from tests.nonces import Nonces
from tests.unit.repository.conftest import Vault
from tests.unit.repository.test_round_trip import noise

KEYS = MasterKeys(bytes(range(32)), bytes(range(32, 64)))


def test_two_pieces_under_one_nonce_fail_the_test() -> None:
    cipher = Sealer(KEYS, "00" * 16).cipher(b"point", bytes(32))
    cipher.seal(0, 1, b"one")
    cipher.seal(0, 2, b"one")
    with pytest.raises(AssertionError, match="one key and nonce"):
        cipher.seal(0, 1, b"two")
    with pytest.raises(AssertionError, match="one key and nonce"):
        cipher.seal_into(0, 2, b"two", memoryview(bytearray(19)))


def test_every_piece_of_a_point_is_noted(nonces: Nonces, vault: Vault) -> None:
    before = nonces.sealed
    vault.save([noise(40 * 4096)])
    # frames of 32 and 8 blocks, a node, a leaf, the definition; ids and table of two packs;
    # manifest and final
    assert nonces.sealed - before >= 2 + 3 + 4 + 2
