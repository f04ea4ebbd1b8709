"""A daemon for the dashboard: a small fleet with something of everything, without any machine."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
import threading
import zlib
from collections.abc import Sequence

import msgspec

from drvm.core.errors import DrvmError, Locked, UsageError
from drvm.report.input import ReportInput, RunRow, VmRow
from drvm.report.model import CheckResult, DrillResult
from drvm.runs.model import Run
from drvm.web.source import Action, PointRow

NOW = dt.datetime(2026, 11, 23, 4, 0, tzinfo=dt.UTC)
TOKEN = "correct-horse-battery-staple-9"
WEB1 = "5f0c8a1e-73b4-4d19-9c52-e08b6d2f4a71"
DB1 = "b2e94d07-1c68-4fa3-86d5-30f7a9c1e5b8"
MAIL = "c7a1360f-e25d-4b8e-a4f9-7d618b0c93e2"
OLD = "9d35f2c6-48a0-4e71-b3c8-16e5d90a7f24"
_HOST = "qemu:///system"


def hours(count: float) -> dt.datetime:
    """So many before ``NOW``."""
    return NOW - dt.timedelta(hours=count)


def some_id(seed: str) -> str:
    """As points and drills have them."""
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def screen(width: int = 160, height: int = 100) -> bytes:
    """A guest's console with some lines on it, as PNG."""
    rows = []
    for y in range(height):
        lit = y % 8 < 5 and y < 72
        length = width * (37 + 29 * (y // 8) % 53) // 100
        dots = (b"\xc8" if lit and x < length and x % 5 else b"\x10" for x in range(width))
        rows.append(b"\0" + b"".join(dots))

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(b"".join(rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


SCREEN = screen()


def row(vm: str, uuid: str, age_h: float | None, **changes: object) -> VmRow:
    base = VmRow(
        vm=vm,
        vm_uuid=uuid,
        host=_HOST,
        policy="nightly",
        last_point=some_id(uuid),
        last_point_created=hours(age_h) if age_h is not None else None,
        consistency="filesystem",
        rpo_state="met",
        rpo_age_seconds=age_h * 3600 if age_h is not None else None,
        rpo_target_seconds=86400.0,
        points=14,
        first_point_created=hours(400),
        points_per_day=(0,) * 26 + (1,) * 5 + (0,) + (1, 1, 2, 1, 1, 1, 1, 1, 1, 1),
        disk_bytes=40 * 2**30,
        stored_bytes=16 * 2**30,
    )
    return msgspec.structs.replace(base, **changes)


def drill(vm: str, uuid: str, age_h: float, rto_s: float | None, **changes: object) -> DrillResult:
    passed = rto_s is not None
    began = hours(age_h)
    base = DrillResult(
        id=f"drill-{vm}-{age_h:g}",
        vm=vm,
        vm_uuid=uuid,
        point=some_id(f"{uuid}{age_h}"),
        point_created=hours(age_h + 2),
        consistency="filesystem",
        started=began,
        finished=began + dt.timedelta(seconds=(rto_s or 300.0) + 5),
        passed=passed,
        rto_seconds=rto_s,
        rto_target_seconds=900.0,
        rpo_seconds=7200.0,
        rpo_target_seconds=86400.0,
        phases={"plan": 1.1, "data": 61.0, "define": 0.6, "boot": 38.0, "checks": 6.2},
        checks=(
            CheckResult(name="agent", passed=passed, seconds=38.0, detail="answers"),
            CheckResult(
                name="http 80 /health",
                passed=passed,
                seconds=1.2,
                detail="200, ok" if passed else "connection refused",
            ),
        ),
        not_proven=("that users can log in",),
        proven=("the machine boots from its restored disks",),
        host="kvm1",
        drvm_version="0.1",
        data_bytes=21 * 2**30,
        screenshot_png=SCREEN,
    )
    return msgspec.structs.replace(base, **changes)


def run(job: str, vm: str, uuid: str, age_h: float, **changes: object) -> Run:
    values: dict[str, object] = {
        "id": f"{job}-{vm}-{age_h:g}",
        "job": job,
        "kind": job.partition(" ")[0],
        "vm": vm,
        "vm_uuid": uuid,
        "host": _HOST,
        "due": hours(age_h),
        "started": hours(age_h),
        "ended": hours(age_h) + dt.timedelta(minutes=4),
        "state": "done",
    }
    return Run(**(values | changes))  # type: ignore[arg-type]


class FakeDaemon:
    """A ``Source``: change its fields to change what it says; ``began`` holds what was asked."""

    def __init__(self) -> None:
        self.vms: tuple[VmRow, ...] = (
            row("web1", WEB1, 1),
            row("db1", DB1, 31, rpo_state="missed"),
            row("mail", MAIL, 4, rpo_target_seconds=None, rpo_state="no-target"),
            row("scratch", OLD, None, policy=None, rpo_state="never", rpo_age_seconds=None,
                rpo_target_seconds=None, last_point=None, consistency=None, points=0),
        )  # fmt: skip
        self.drills = (
            *(drill("web1", WEB1, 24 * n, 108.0 + 31 * (n * 7 % 5)) for n in range(1, 9)),
            drill("db1", DB1, 30, None),
            drill("db1", DB1, 198, 410.0),
        )
        self.now_running: tuple[Run, ...] = (
            run("backup nightly", "web1", WEB1, 0.1, ended=None, state="running",
                stage="reading vda", done_bytes=3 * 2**30, total_bytes=10 * 2**30),
        )  # fmt: skip
        self.ended: tuple[Run, ...] = (
            run("backup nightly", "mail", MAIL, 4, result=some_id(MAIL),
                stored_bytes=412 * 2**20),
            run("drill nightly", "db1", DB1, 30, state="failed", result="drill-db1-30",
                message="a check did not pass: http 80 /health"),
            run("backup nightly", "db1", DB1, 7, state="failed", attempt=3,
                message="the guest's disk vdc has no room for an overlay",
                hint="make room below /var/lib/libvirt/images, or set overlay_dir"),
            run("prune", "", "", 15),
            run("gc", "", "", 13, state="warned", message="2 packs could not be deleted"),
            run("check", "", "", 14),
        )  # fmt: skip
        self.began: list[tuple[str, str]] = []
        self.trouble: DrvmError | None = None
        self.gathered = 0
        self._lock = threading.Lock()

    def report(self) -> ReportInput:
        with self._lock:
            self.gathered += 1
        if self.trouble is not None:
            raise self.trouble
        return ReportInput(
            generated=NOW,
            repository="s3://drvm/main",
            vms=self.vms,
            drills=self.drills,
            drvm_version="0.1",
            runs=tuple(
                RunRow(
                    job=one.job, kind=one.kind, vm=one.vm, vm_uuid=one.vm_uuid, host=one.host,
                    started=one.started, ended=one.ended, state=one.state, attempt=one.attempt,
                    message=one.message, hint=one.hint, result=one.result,
                )
                for one in self.ended
            ),
        )  # fmt: skip

    def running(self) -> Sequence[Run]:
        return self.now_running

    def recent(self, limit: int, vm_uuid: str | None = None) -> Sequence[Run]:
        return [one for one in self.ended if vm_uuid in (None, one.vm_uuid)][:limit]

    def points(self, vm_uuid: str) -> Sequence[PointRow]:
        found = next((one for one in self.vms if one.vm_uuid == vm_uuid), None)
        if found is None or found.last_point_created is None:
            return []
        return [
            PointRow(
                id=some_id(f"{vm_uuid}{n or ''}"),
                vm=found.vm,
                created=found.last_point_created - dt.timedelta(days=n),
                consistency="filesystem" if n != 2 else "crash",
                engine="external",
                disks=2,
                disk_bytes=40 * 2**30,
                stored_bytes=(8 * 2**30 if n == 13 else (180 + 137 * (n * 5 % 7)) * 2**20),
                warnings=("the guest's agent did not answer",) if n == 2 else (),
            )
            for n in range(14)
        ]

    def picture(self, drill: DrillResult) -> bytes | None:
        return None

    def may_start(self, vm_uuid: str) -> Sequence[Action]:
        found = next((one for one in self.vms if one.vm_uuid == vm_uuid), None)
        return ("backup", "drill") if found is not None and found.policy is not None else ()

    def start(self, action: Action, vm_uuid: str) -> str:
        with self._lock:
            if action not in self.may_start(vm_uuid):
                raise UsageError(
                    "no policy covers this VM", hint="name it in a policy of the config"
                )
            if any((one.kind, one.vm_uuid) == (action, vm_uuid) for one in self.now_running):
                raise Locked(f"a {action} of this VM runs already")
            self.began.append((action, vm_uuid))
            vm = next(one.vm for one in self.vms if one.vm_uuid == vm_uuid)
            began = run(f"{action} nightly", vm, vm_uuid, 0, ended=None, state="running", due=None)
            self.now_running = (*self.now_running, began)
        return began.id

    def metrics(self) -> str:
        return "# HELP drvm_up The daemon runs.\n# TYPE drvm_up gauge\ndrvm_up 1\n"
