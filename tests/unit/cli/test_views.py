"""Points and drills as they are printed: the fields that tools rely on, and the tables."""

import io
import json
from pathlib import Path

from drvm.cli.output import Flags, Output
from drvm.cli.views import point_fields, show_points
from drvm.repository.manifest import Disk, Manifest

POINT = Manifest(
    id="9f86d081884c7d65",
    vm="web1",
    vm_uuid="2f3c5f0a-0000-4000-8000-000000000000",
    created="2026-11-23T04:00:00.000000Z",
    finished="2026-11-23T04:01:00.000000Z",
    consistency="crash",
    engine="external",
    host="kvm1",
    drvm_version="0.1.0",
    stored_bytes=5000,
    disks=(
        Disk("vda", 10 << 30, "qcow2", "full-read", 4 << 20, 2 << 20, 1 << 20),
        Disk("vdb", 1 << 30, "raw", "full-read", 8192, 4096, 34),
    ),
    warnings=("no agent",),
)
REPORT = Path("/srv/report.html")


def written(*, json_wanted: bool) -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    return Output(stream, Flags(json=json_wanted), colour=False), stream


def test_a_point_has_the_fields_that_tools_rely_on() -> None:
    output, stream = written(json_wanted=True)
    output.document({"points": [point_fields(POINT)]})
    (point,) = json.loads(stream.getvalue())["points"]
    assert {name: point[name] for name in ("id", "vm", "created", "status", "consistency")} == {
        "id": "9f86d081884c7d65",
        "vm": "web1",
        "created": "2026-11-23T04:00:00.000000Z",
        "status": "good",
        "consistency": "crash",
    }
    assert point["warnings"] == ["no agent"]
    assert point["disks"][0] == {
        "target": "vda",
        "size_bytes": 10 << 30,
        "format": "qcow2",
        "read_bytes": 4 << 20,
        "new_bytes": 2 << 20,
        "stored_bytes": 1 << 20,
        "method": "full-read",
    }


def test_points_are_a_table_with_sums_over_the_disks() -> None:
    output, stream = written(json_wanted=False)
    show_points(output, [POINT])
    titles, row = stream.getvalue().splitlines()
    assert titles.split()[:2] == ["POINT", "VM"]
    cells = ("9f86d081884c7d65", "web1", "2026-11-23 04:00:00", "crash", "2", "11.0 GiB", "2.0 MiB")
    at = -1
    for cell in cells:
        assert row.find(cell, at + 1) > at, cell
        at = row.find(cell, at + 1)
