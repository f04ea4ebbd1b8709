"""What makes this host itself: a key that never leaves it, in the state directory."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from drvm.core.files import write_durably
from drvm.repository.trust import HOST_KEY_BYTES

_NAME = "host.key"


def host_key(state_dir: Path) -> bytes | None:
    """The host's key, made if there is none; ``None`` where it can't be kept: then nothing that
    was stored before counts as this host's own.

    Of two that make one at once both get the same. A crash leaves a key or none.
    """
    path = state_dir / _NAME
    try:
        return _read(path)
    except OSError:
        pass
    fresh = path.with_name(f".{_NAME}.{secrets.token_hex(4)}")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(fresh, secrets.token_bytes(HOST_KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        return _read(path)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def _read(path: Path) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(HOST_KEY_BYTES + 1)
    return data if len(data) == HOST_KEY_BYTES else None
