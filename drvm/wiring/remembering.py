"""What the jobs of one process remember together of a repository."""

from __future__ import annotations

import functools

from drvm.repository.remembered import Remembered
from drvm.repository.repository import Repository


def remembered_of(repository: Repository) -> Remembered:
    """The same for all who open it: a daemon looks every minute."""
    return _remembered(repository.store.location, repository.id)


@functools.lru_cache(maxsize=8)
def _remembered(_location: str, _repository_id: str) -> Remembered:
    return Remembered()
