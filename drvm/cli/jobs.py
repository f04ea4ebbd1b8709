"""What ``drvm daemon`` and ``drvm run`` make their jobs of."""

from __future__ import annotations

from drvm.cli.invocation import Invocation
from drvm.config.elsewhere import elsewhere
from drvm.config.settings import Settings
from drvm.daemon.tasks import Doing
from drvm.daemon.tasks_vms import OpenWiring
from drvm.wiring.assembly import Wiring


def doing_of(invocation: Invocation, settings: Settings) -> Doing:
    """The passphrases of the repository and of copies with a schedule are asked for now, those of
    other copies when they are wanted. Raises ``UsageError`` where one can't be had."""
    copies = {
        copy.name: _opener(
            invocation,
            elsewhere(settings, copy.name, invocation.environ),
            now=copy.schedule is not None,
        )
        for copy in settings.copies
    }
    return Doing(_opener(invocation, settings, now=True), copies, invocation.processes)


def _opener(invocation: Invocation, settings: Settings, *, now: bool) -> OpenWiring:
    told = [invocation.password(settings)] if now else []

    def passphrase() -> bytes:
        if not told:
            told.append(invocation.password(settings))
        return told[0]

    def open_wiring() -> Wiring:
        return Wiring(
            settings,
            clock=invocation.clock,
            processes=invocation.processes,
            passphrase=passphrase,
        )

    return open_wiring
