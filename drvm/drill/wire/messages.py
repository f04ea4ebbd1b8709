"""What drvm and the process in the drill's network say to each other: JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_MAX_DETAIL_CHARS = 900
"""Four bytes each are the most, and ``Child.hear`` takes lines of 4096, their end included."""


class Subnet(msgspec.Struct, frozen=True):
    """``own``: our address in it, with its prefix length. ``first``, ``last``: what anybody may
    get; empty where only known cards get theirs."""

    own: str
    first: str = ""
    last: str = ""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The cable is plugged in: bring it up, and serve DHCP. ``hosts``: (MAC, address).
    ``cards``: the MACs of all machines."""

    subnets: tuple[Subnet, ...]
    hosts: tuple[tuple[str, str], ...]
    taken: tuple[str, ...]
    cards: tuple[str, ...] = ()


class Heard(msgspec.Struct, frozen=True, tag=True):
    macs: tuple[str, ...]


class Reach(msgspec.Struct, frozen=True, tag=True):
    """Have an address of our own from which ``to`` (with its prefix length) can be reached."""

    to: str


class Tcp(msgspec.Struct, frozen=True, tag=True):
    to: str
    port: int
    banner: str | None
    timeout_s: float


class Http(msgspec.Struct, frozen=True, tag=True):
    """``ca``: PEM."""

    to: str
    port: int
    path: str
    tls: bool
    host: str | None
    ca: str | None
    expect_status: tuple[int, ...]
    expect_body: str | None
    timeout_s: float


Request = Begin | Heard | Reach | Tcp | Http


class Answer(msgspec.Struct, frozen=True):
    """``addresses``: to ``Heard``; ``failed``: why nothing can be said."""

    passed: bool = False
    answered: bool = False
    detail: Annotated[str, Meta(max_length=_MAX_DETAIL_CHARS)] = ""
    addresses: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    failed: Annotated[str, Meta(max_length=_MAX_DETAIL_CHARS)] = ""


def answer(passed: bool, answered: bool, detail: str) -> Answer:
    return Answer(passed, answered, cut(detail))


def cut(text: str) -> str:
    """No surrogates, and short enough for one line."""
    return text[:_MAX_DETAIL_CHARS].encode(errors="replace").decode()
