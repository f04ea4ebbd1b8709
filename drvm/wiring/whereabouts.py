"""Where each machine was last seen, so that a definition which a move has left behind is not taken
for the machine itself while the host where that runs does not answer.

``whereabouts.json`` in the state directory: UUID -> URI of the host. Looks at the whole fleet write
it where something changed; where it is lost, only points tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from drvm.core.files import write_durably
from drvm.core.text import printable
from drvm.host.reach import is_here
from drvm.repository.manifest import Manifest

FILE = "whereabouts.json"
MAX_BYTES = 4 * 1024 * 1024
MAX_MACHINES = 20_000

HINT = (
    "nothing is to be done where that host comes back; if it is gone for good, take that host out "
    "of hosts in the config, or start the VM here; if the move was meant, undefine what it left"
)


class _Vm(Protocol):
    @property
    def uuid(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def is_on(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """``hosts``: UUID -> URI. ``is_own``: whether this host wrote a point."""

    hosts: Mapping[str, str] = field(default_factory=dict)
    is_own: Callable[[Manifest], bool] = lambda _: True

    def last_seen(self, vm_uuid: str, host: str) -> bool:
        return self.hosts.get(vm_uuid) == host

    def held(
        self,
        vm_uuid: str,
        host: str,
        away: Sequence[str],
        newest: Callable[[], Manifest | None],
    ) -> str:
        """Why nobody can tell that a machine which is off on ``host``, and runs on none that
        answers, is the machine itself; empty where nothing speaks against it. ``newest``: its
        newest point, which is asked for only where it decides."""
        if not away:
            return ""
        last = self.hosts.get(vm_uuid)
        left = "what is here may be what a move left behind"
        if last in away:
            return (
                f"it is off on {host}, and was last seen on {last}, which does not answer: {left}"
            )
        manifest = newest() if is_here(host) else None
        if manifest is None or self.is_own(manifest):
            return ""
        writer = printable(manifest.host, 100)
        return (
            f"it is off on {host}, its newest point was written by {writer}, and {away[0]} does "
            f"not answer: {left}"
        )


NOWHERE = Whereabouts()


def read(state_dir: Path) -> dict[str, str]:
    """Nothing where there is no file that can be read."""
    path = state_dir / FILE
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        return msgspec.json.decode(data, type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}


def remember(
    state_dir: Path,
    known: Mapping[str, str],
    vms: Iterable[_Vm],
    *,
    away: bool,
    twins: Collection[str] = (),
) -> None:
    """After a look: ``vms`` are all that it found, ``known`` what ``read`` said before it.
    ``twins``: the UUIDs that several hosts have; of those only what runs tells where. While a host
    is ``away``, what is not seen is not forgotten. A crash leaves the file as it was, and so does
    one that can't be written."""
    found = {vm.uuid: vm for vm in vms}
    now = {uuid: host for uuid, host in known.items() if away or uuid in found}
    for uuid, vm in found.items():
        if vm.host is not None and (vm.is_on or uuid not in twins):
            now[uuid] = vm.host
    if now == known or len(now) > MAX_MACHINES:
        return
    with contextlib.suppress(OSError):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(state_dir / FILE, msgspec.json.encode(now))
