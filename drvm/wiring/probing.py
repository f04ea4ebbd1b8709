"""The probe of the store, and what it found the last time, kept beside the journal.

What a probe found is believed by backups without another one: a store without an atomic
create-if-absent is for one writing host only.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from drvm.core.errors import StoreRefused
from drvm.core.files import write_durably
from drvm.core.findings import Finding
from drvm.store.base import Store
from drvm.store.probe import ProbeReport, probe
from drvm.wiring.assembly import Wiring


class KeptProbe(msgspec.Struct, frozen=True):
    """``when``: by this host's clock."""

    when: dt.datetime
    location: str
    findings: tuple[Finding, ...]

    def bad(self, name: str) -> bool:
        return any(finding.name == name and not finding.ok for finding in self.findings)

    @property
    def words(self) -> str:
        wrong = ", ".join(finding.name for finding in self.findings if not finding.ok)
        return f"{self.when:%Y-%m-%d %H:%M} UTC: " + (f"wrong: {wrong}" if wrong else "all well")


def probe_store(wiring: Wiring, store: Store) -> ProbeReport:
    """Probe, and keep the result where the store could be written; the finding ``kept`` tells where
    that was not possible."""
    report = probe(store, wiring.clock, wiring.lock_rule)
    if not report.findings[0].ok:
        return report
    path = _path(wiring)
    kept = KeptProbe(wiring.clock.now(), report.location, report.findings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, msgspec.json.encode(kept))
    except OSError as error:
        words = f"the result can't be kept in {path.parent}: {error.strerror}"
        hint = "state_dir of the config must be a directory that can be written"
        return replace(report, findings=(*report.findings, Finding("kept", False, words, hint)))
    return report


def kept_probe(wiring: Wiring) -> KeptProbe | None:
    """The last one of this host; ``None`` where there is none that can be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_path(wiring).read_bytes(), type=KeptProbe)
    return None


def refuse_second_writer(wiring: Wiring) -> None:
    """Raises ``StoreRefused`` where two hosts would write to a store that can't tell who was
    first."""
    kept = kept_probe(wiring)
    if kept is None or not kept.bad("create-if-absent"):
        return
    points = wiring.repository().points().points
    others = sorted({point.manifest.host for point in points} - {wiring.writer})
    if others:
        raise StoreRefused(
            f"{kept.location} has no atomic create-if-absent, and {others[0]} writes to it too",
            hint="back up to it from one host only, or use another store; drvm doctor asks it anew",
        )


def _path(wiring: Wiring) -> Path:
    """A file for each place; the name says nothing."""
    named = wiring.settings.needed_repository()
    key = hashlib.sha256(f"{named.url} {named.endpoint}".encode()).hexdigest()[:16]
    return Path(wiring.settings.state_dir) / "stores" / f"{key}.json"
