"""A user's own program on this host ends with exit code 0.

It runs in the drill's network and sees no other, as the user that drvm runs as. Its environment
says what it is about.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from drvm.config.checks import Command, TimeLimit
from drvm.core.text import printable
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need
from drvm.drill.checks.reaching import addresses_of, scoped
from drvm.drill.checks.tcp import NO_WIRE

_SHOWN_NAME_CHARS = 100
_MAX_ADDRESSES = 16


@dataclass(frozen=True, slots=True)
class ScriptCheck:
    """Implements ``Check``. ``run``: the program and its arguments, without a shell. Tried again
    until it ends well: a service may still be starting."""

    run: Command
    timeout_s: TimeLimit = 60.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"network"})

    @property
    def name(self) -> str:
        return f"script {shlex.join(self.run)}"

    @property
    def proves(self) -> str:
        script = printable(shlex.join(self.run), _SHOWN_NAME_CHARS)
        return f"the host's own program {script} ended with exit code 0 beside the running guest"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        if guest.wire is None:
            return NO_WIRE
        addresses = addresses_of(guest)[:_MAX_ADDRESSES]
        env = {
            "DRVM_VM": guest.vm,
            "DRVM_POINT": guest.point,
            "DRVM_DRILL": guest.drill,
            "DRVM_ADDRESS": scoped(addresses[0]) if addresses else "",
            "DRVM_ADDRESSES": " ".join(map(scoped, addresses)),
        }
        to = addresses[0] if addresses else None
        return guest.wire.run(self.run, env, to, self.timeout_s, guest.beat)
