"""The repository in memory of the repository's own tests, and one whose store has faults."""

import pytest

from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault, vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise

__all__ = ["cheap_key_derivation", "vault"]


@pytest.fixture
def faulty() -> Vault:
    """Three points, each with a disk of its own."""
    vault = new_vault(FaultyStore())
    for seed in range(3):
        vault.save([noise(SMALL, seed)])
    return vault
