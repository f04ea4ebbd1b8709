"""The repository in memory of the repository's own tests."""

from tests.unit.repository.conftest import cheap_key_derivation, vault

__all__ = ["cheap_key_derivation", "vault"]
