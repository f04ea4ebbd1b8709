"""What ``restore --running`` goes together with."""

from __future__ import annotations

from collections.abc import Mapping

from drvm.core.errors import UsageError

_WITH_IT = frozenset(
    {"to", "pool", "map_pool", "map_network", "replace", "image_format", "device"}
    | {"verify", "dry_run", "as_of"}
)


def refuse_with_running(options: Mapping[str, object]) -> None:
    """A machine goes on from its memory only as the very same one. Raises ``UsageError``."""
    given = sorted(name for name, value in options.items() if value and name not in _WITH_IT)
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{names} and --running exclude each other",
            hint="a machine goes on only as the very same one: start another by --start",
        )
