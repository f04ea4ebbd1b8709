"""A way to a guest in memory: what it was asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drvm.drill.checks.base import Address, Attempt, Beat, HttpAsked

OPEN = Attempt(True, True, "open")


@dataclass
class FakeWire:
    """Implements ``Wire``."""

    answer: Attempt = OPEN
    told: tuple[Address, ...] = ()
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def heard(self, macs: Sequence[str]) -> tuple[Address, ...]:
        self.asked.append(("heard", tuple(macs)))
        return self.told

    def tcp(self, to: Address, port: int, banner: str | None, timeout_s: float) -> Attempt:
        self.asked.append((str(to), port, banner, timeout_s))
        return self.answer

    def http(self, to: Address, asked: HttpAsked, timeout_s: float) -> Attempt:
        self.asked.append((str(to), asked, timeout_s))
        return self.answer

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        to: Address | None,
        timeout_s: float,
        beat: Beat,
    ) -> Attempt:
        beat()
        self.asked.append((tuple(argv), dict(env), to, timeout_s))
        return self.answer
