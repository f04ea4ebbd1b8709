"""A fleet that never was, for pictures and for tests of pages: the same for the same seed.

``python -m tests.made_up_fleet FILE.html [VMS]`` writes its report.
"""

from __future__ import annotations

import datetime as dt
import random
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from drvm.core.units import GIB, TIB
from drvm.report.html import html_report
from drvm.report.input import (
    DAYS_SHOWN,
    CheckRow,
    JobRow,
    ReportInput,
    RunRow,
    StorageSample,
    VmRow,
)
from drvm.report.model import CheckResult, DrillResult

NOW = dt.datetime(2026, 11, 23, 6, 30, tzinfo=dt.UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)

_ROLES = (
    "web",
    "db",
    "mail",
    "files",
    "ldap",
    "build",
    "git",
    "proxy",
    "erp",
    "mon",
    "dns",
    "wiki",
)
_HOSTS = ("qemu+ssh://kvm1/system", "qemu+ssh://kvm2/system")
_NOT_PROVEN = (
    "that applications had written down what they held in memory: at the point's instant the file "
    "systems were frozen, applications were not asked",
    "that it reaches other machines: the drill's network has no way out",
    "that it runs on other hardware than kvm2's",
)


def png(width: int = 360, height: int = 200, seed: int = 0) -> bytes:
    """A console with lines of grey on black."""
    chance = random.Random(seed)
    ends = {line: chance.randrange(40, width - 20) for line in range(1, height // 10 - 1)}
    rows = bytearray()
    for y in range(height):
        end, ink = ends.get(y // 10, 0), y % 10 in (2, 4, 5, 7)
        rows.append(0)
        rows += bytes(180 if ink and 8 < x < end and (x * 7 + y) % 5 else 0 for x in range(width))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(rows), 9)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    )


class MadeUp:
    """Most VMs are well; a few are not, each in its own way. ``picture``: every drill's."""

    def __init__(self, vms: int = 24, seed: int = 7, picture: bytes | None = None) -> None:
        self._chance = random.Random(seed)
        self._picture = picture or png()
        self._count = vms

    def report(self) -> ReportInput:
        rows = [self._row(number) for number in range(self._count)]
        drills = [drill for number, row in enumerate(rows) for drill in self._drills(number, row)]
        return ReportInput(
            generated=NOW,
            repository="s3://backup-main/drvm",
            drvm_version="0.7.0",
            host="kvm1",
            vms=tuple(rows),
            drills=tuple(drills),
            runs=tuple(self._runs(rows)),
            jobs=tuple(self._jobs()),
            checks=tuple(self._checks()),
            storage=tuple(self._storage(rows)),
        )

    def _row(self, number: int) -> VmRow:
        chance = self._chance
        name = f"{_ROLES[number % len(_ROLES)]}{number // len(_ROLES) + 1}"
        policy = "databases" if name.startswith(("db", "erp", "mail")) else "nightly"
        hourly = policy == "databases"
        late, bare, gone = number == 13, number == 17, number == 21
        age = 49.2 if late else 400.0 if gone else chance.uniform(0.1, 0.9) if hourly else 4.5
        target = 2.0 if hourly else 26.0
        last = NOW - dt.timedelta(hours=age + chance.uniform(0, 0.5))
        days = [
            (chance.choice((6, 7)) if back > 3 else 24) if hourly else 1
            for back in reversed(range(DAYS_SHOWN))
        ]
        if number % 9 == 4:
            days[: DAYS_SHOWN - 12] = [0] * (DAYS_SHOWN - 12)
        if late:
            days[-2:] = [0, 0]
        disks = chance.choice((20, 40, 40, 80, 120, 400)) * GIB
        met = not late and not gone
        return VmRow(
            vm=name,
            vm_uuid=f"00000000-0000-4000-8000-{number:012d}",
            host="gone" if gone else _HOSTS[number % 2],
            policy=None if bare else policy,
            last_point=None if bare else f"{number:016x}",
            last_point_created=None if bare else last,
            consistency=None if bare else "crash" if number % 7 == 3 else "filesystem",
            rpo_state="never" if bare else "met" if met else "missed",
            rpo_age_seconds=None if bare else (NOW - last).total_seconds(),
            rpo_target_seconds=None if bare else target * 3600,
            gone=gone,
            points=0 if bare else sum(days),
            first_point_created=None if bare else NOW - DAYS_SHOWN * DAY,
            points_per_day=() if bare else tuple(days),
            disk_bytes=0 if bare else disks,
            stored_bytes=0 if bare else int(disks * chance.uniform(0.1, 0.4)),
            drill_due=None if bare else NOW - 8 * DAY,
        )

    def _drills(self, number: int, row: VmRow) -> list[DrillResult]:
        if row.policy is None or row.gone or number == 19:
            return []
        together = row.policy == "databases"
        late = 16 * DAY if number == 10 else dt.timedelta(0)
        usual = self._chance.uniform(60, 260) + (70 if number == 6 else 0)
        found = []
        for week in range(9):
            started = NOW - 3 * HOUR - late - week * 7 * DAY - number * 3 * dt.timedelta(minutes=1)
            bad = (number == 5 and week < 2) or (number % 8 == 2 and week == 4)
            slow = 700 if number == 6 and week == 0 else 0
            rto = None if bad else usual * self._chance.uniform(0.9, 1.15) + slow
            found.append(self._drill(row, number, week, started, rto, together=together))
        return found

    def _drill(
        self, row: VmRow, number: int, week: int, started: dt.datetime, rto: float | None,
        *, together: bool,
    ) -> DrillResult:  # fmt: skip
        took = rto or 300.0
        boot = min(60.0, took * 0.4)
        checks = [CheckResult(name="agent answers", passed=True, seconds=round(boot, 1))]
        if row.vm.startswith("db"):
            words = "pg_isready: accepting connections"
            checks.append(CheckResult(name="pg_isready", passed=True, seconds=0.4, detail=words))
        port = CheckResult(
            name="http GET /health", passed=rto is not None, seconds=0.3 if rto else 120.0,
            detail="200 OK, body matches 'ready'" if rto else "HTTP 502 Bad Gateway after 24 tries",
        )  # fmt: skip
        checks.append(port)
        passed = rto is not None
        fields: dict[str, Any] = {
            "id": f"{number:08x}{week:08x}",
            "vm": row.vm,
            "vm_uuid": row.vm_uuid,
            "point": f"{number * 77 + week:016x}",
            "point_created": started - 2 * HOUR,
            "consistency": row.consistency or "filesystem",
            "started": started,
            "finished": started + dt.timedelta(seconds=took + 4),
            "passed": passed,
            "rto_seconds": rto,
            "rto_target_seconds": 600.0,
            "rpo_seconds": 7200.0,
            "rpo_target_seconds": row.rpo_target_seconds,
            "phases": {"plan": 0.6, "data": took - boot - 2, "define": 0.9, "boot": boot,
                       "checks": 0.7 if passed else 120.0},
            "checks": tuple(checks),
            "not_proven": _NOT_PROVEN,
            "proven": ("every stored block of 2 disks was read back, decrypted and matched its id",
                       "libvirt on kvm2 accepted the rebuilt machine and started it",
                       "the guest booted: its agent answered"),
            "host": "kvm2",
            "drvm_version": "0.7.0",
            "data_bytes": row.disk_bytes // 5,
            "screenshot_png": self._picture if week < 2 else None,
            "method": "boot" if together else "restore",
            "group": f"together {week}" if together and week < 2 and number < 12 else "",
            "stage": 0 if row.vm.startswith("db") else 1,
            "group_rto_seconds": 318.0 if together and number < 12 else None,
        }  # fmt: skip
        return DrillResult(**fields)

    def _runs(self, rows: list[VmRow]) -> list[RunRow]:
        runs = []
        for number, row in enumerate(rows):
            if row.policy is None or row.gone:
                continue
            bad = number == 13
            runs.append(
                self._run(
                    f"backup {row.policy}", "backup", row, "failed" if bad else "done",
                    "the guest's file systems could not be frozen: the agent does not answer"
                    if bad else "",
                    "look at qemu-guest-agent in the guest, or allow crash-consistent points",
                )
            )  # fmt: skip
        runs.append(self._run("copy offsite", "copy", None, "done"))
        runs.append(self._run("prune", "prune", None, "done"))
        runs.append(self._run("gc", "gc", None, "done"))
        runs.append(self._run("check", "check", None, "done"))
        return runs

    def _run(
        self, job: str, kind: str, row: VmRow | None, state: str, message: str = "", hint: str = ""
    ) -> RunRow:
        began = NOW - dt.timedelta(minutes=self._chance.randrange(30, 300))
        return RunRow(
            job=job, kind=kind, vm=row.vm if row else "", vm_uuid=row.vm_uuid if row else "",
            host=row.host if row else "", started=began, ended=began + HOUR / 20, state=state,
            message=message, hint=hint if message else "",
        )  # fmt: skip

    def _jobs(self) -> list[JobRow]:
        return [
            JobRow(job="check", kind="check", due=NOW - 2 * DAY, last_good=NOW - DAY),
            JobRow(job="copy offsite", kind="copy", due=NOW - 2 * DAY, last_good=NOW - 5 * HOUR,
                   behind=14),
            JobRow(job="gc", kind="gc", due=NOW - 2 * DAY, last_good=NOW - DAY),
            JobRow(job="prune", kind="prune", due=NOW - 2 * DAY, last_good=NOW - DAY),
        ]  # fmt: skip

    def _checks(self) -> list[CheckRow]:
        return [
            CheckRow(
                began=NOW - week * 7 * DAY - 10 * HOUR, host="kvm1", share=0.1, packs=5120,
                read_bytes=160 * GIB, damaged_packs=int(week == 3), stands=False,
            )
            for week in reversed(range(6))
        ]  # fmt: skip

    def _storage(self, rows: list[VmRow]) -> list[StorageSample]:
        protected = sum(row.disk_bytes for row in rows)
        points = sum(row.points for row in rows)
        stored, samples = 0.9 * TIB, []
        for day in range(75):
            stored += (9 + self._chance.gauss(0, 5)) * GIB - (90 * GIB if day % 21 == 20 else 0)
            samples.append(
                StorageSample(
                    taken=NOW - (74 - day) * DAY, stored_bytes=int(stored),
                    protected_bytes=protected, points_bytes=protected * 38, points=points,
                )
            )  # fmt: skip
        return samples


def main() -> None:
    path, vms = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24
    path.write_text(html_report(MadeUp(vms).report()), encoding="utf-8")


if __name__ == "__main__":
    main()
