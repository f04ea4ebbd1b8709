"""What restores leave on the hosts of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from drvm.core.findings import Finding
from drvm.host.model import Host
from drvm.host.nbd import dead_exports, sweep_exports
from drvm.restore.targets.partial import LeftImage, left_in, sweep_partial
from drvm.restore.targets.volume_leftovers import FoundLease, LeaseObserver, clear, pools_of
from drvm.wiring.assembly import Wiring


def dead_servers() -> list[Finding]:
    """NBD servers of images whose drvm was killed as it started them. Changes nothing."""
    listening = Path("/proc/net/unix").read_text(errors="replace")
    hint = "drvm doctor --fix ends it, and so does the next backup or restore"
    words = "it may keep an image locked: the drvm that started it was killed"
    return [
        Finding(f"server {path}", False, words, hint)
        for path in dead_exports()
        if f"{path}/socket" in listening
    ]


def end_dead_servers(wiring: Wiring) -> list[Finding]:
    """All of them; a finding that says how many, or none."""
    count = sweep_exports(wiring.clock) - len(dead_exports())  # some may not answer now
    return [Finding("servers of images", True, f"{count} ended")] if count > 0 else []


def half_restored(host: Host) -> list[LeftImage]:
    """Images in the pools of a host that is this machine, which a restore has left half-written
    and nobody works on. Changes nothing."""
    return [image for directory in _directories(host) for image in left_in(directory)]


def remove_half_restored(host: Host) -> list[Finding]:
    """All of them; a finding for each."""
    return [
        Finding(str(path), True, "a half-restored image was removed")
        for directory in _directories(host)
        for path in sweep_partial(directory, all_of_them=True)
    ]


def half_filled(wiring: Wiring, host: Host) -> tuple[FoundLease, ...]:
    """Volumes that restores through libvirt have left, or are filling now. Changes nothing."""
    return LeaseObserver(host, wiring.clock).look(pools_of(host))


def remove_half_filled(wiring: Wiring, host: Host) -> list[Finding]:
    """What dead restores have left; waits where it takes time to tell the dead from the living.
    A finding for each."""
    done = []
    for lease in LeaseObserver(host, wiring.clock).wait(pools_of(host)):
        if lease.dead:
            removed = ", ".join(clear(host, lease)) or "its lease"
            done.append(Finding(f"restore in pool {lease.pool}", True, f"removed {removed}"))
    return done


def _directories(host: Host) -> Iterator[Path]:
    if not urlsplit(host.uri).netloc:
        paths = {pool.path for pool in host.pools() if pool.active and pool.kind == "dir"}
        yield from (Path(path) for path in sorted(paths))
