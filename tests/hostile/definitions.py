"""Domain XML in a repository: the corpus of the rebuilder, and bytes of other kinds."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.case import Case, harmless, undefined
from tests.hostile.forge import DOMAIN, LEAF, Forge, node
from tests.unit.restore.hostile import DISARMED, REFUSED

MIB = 1 << 20


def of(content: str | bytes) -> Callable[[Forge], str]:
    """A machine with one disk of zeroes, and this definition."""
    plain = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def plant(forge: Forge) -> str:
        name = forge.meta([plain, node(1, 1, {})]).hex()
        disk = forge.disk(LEAF, {"pack": name, "number": 1})
        return forge.point(definition={"pack": name, "number": 0}, disks=[disk])

    return plant


def padded(size: int) -> bytes:
    return DOMAIN.encode() + b" " * (size - len(DOMAIN))


CASES: dict[str, Case] = {
    **{name: undefined(of(content)) for name, content in REFUSED.items()},
    **{name: harmless(of(content)) for name, content in DISARMED.items()},
    "an honest one": harmless(of(DOMAIN)),
    "no bytes": undefined(of(b"")),
    "bytes that are no text": undefined(of(b"\xff\xfe\xfd" + DOMAIN.encode())),
    "UTF-16": undefined(of(DOMAIN.encode("utf-16"))),
    "UTF-16 that says so": undefined(
        of(("<?xml version='1.0' encoding='utf-16'?>" + DOMAIN).encode("utf-16"))
    ),
    "UTF-7 that says so": undefined(
        of("<?xml version='1.0' encoding='utf-7'?>+ADwAIQ-DOCTYPE x+AD4-" + DOMAIN)
    ),
    "an encoding that is a path": undefined(
        of("<?xml version='1.0' encoding='../../etc'?>" + DOMAIN)
    ),
    "a NUL": undefined(of(DOMAIN.replace("x</name>", "\0</name>"))),
    "32 MiB of spaces": undefined(lambda forge: of(padded(32 * MIB))(forge)),
    "4 MiB of spaces": harmless(of(padded(4 * MIB))),
    "a lone surrogate": undefined(of(DOMAIN.replace("x</name>", "\ud800</name>"))),
}
