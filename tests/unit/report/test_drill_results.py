import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, UnsupportedFormat
from drvm.report.input import ReportInput
from drvm.report.json_report import drill_fields, json_report
from drvm.report.model import (
    MAX_ENCODED_BYTES,
    CheckResult,
    DrillResult,
    decode_drill,
    encode_drill,
)

Make = Callable[..., Any]


def test_a_result_reads_back_as_it_was(drill: Make, png: bytes) -> None:
    result = drill(screenshot_png=png, rto_seconds=None, passed=False, failure="no boot")
    assert decode_drill(encode_drill(result)) == result


def test_the_stored_names_are_those_of_the_contract(drill: Make) -> None:
    stored = json.loads(encode_drill(drill()))
    assert {"vm", "point", "passed", "rto_seconds", "rpo_seconds", "checks"} <= stored.keys()
    assert stored["checks"][0].keys() == {"name", "passed", "seconds", "detail"}


@pytest.mark.parametrize(
    "change",
    [
        {"passed": "yes"},
        {"unknown": 1},
        {"rto_seconds": -1},
        {"rpo_seconds": None},
        {"started": "2026-11-23T06:00:00"},
        {"vm": "x" * 301},
        {"checks": [{"name": "a", "passed": True, "seconds": 1, "more": 2}]},
        {"phases": {str(number): 1 for number in range(21)}},
        {"screenshot_png": "no base64!"},
    ],
)
def test_what_no_drvm_wrote_is_damage(drill: Make, change: dict[str, object]) -> None:
    stored = json.loads(encode_drill(drill())) | change
    with pytest.raises(DamageFound):
        decode_drill(json.dumps(stored).encode())


def test_a_later_format_is_said_to_be_one(drill: Make) -> None:
    stored = json.loads(encode_drill(drill())) | {"format": 2, "unknown": 1}
    with pytest.raises(UnsupportedFormat):
        decode_drill(json.dumps(stored).encode())


def test_size_and_depth_are_bounded() -> None:
    for data in (b" " * (MAX_ENCODED_BYTES + 1), b"[" * 100_000, b'{"format":' * 50_000):
        with pytest.raises(DamageFound):
            decode_drill(data)


def test_a_result_of_format_0_is_read(drill: Make) -> None:
    stored = json.loads(encode_drill(drill())) | {"format": 0}
    for later in ("method", "group", "stage", "group_rto_seconds", "ran", "group_absent"):
        del stored[later]
    assert decode_drill(json.dumps(stored).encode()) == drill(format=0)


@given(st.binary())
def test_any_bytes_decode_or_are_damage(data: bytes) -> None:
    with pytest.raises((DamageFound, UnsupportedFormat)):
        decode_drill(data)


def test_a_result_that_could_not_be_read_back_is_not_written(drill: Make) -> None:
    for bad in (drill(rpo_seconds=-1.0), drill(rpo_seconds=float("nan")), drill(vm="x" * 301)):
        with pytest.raises(ValueError, match="drill"):
            encode_drill(bad)


def test_targets_are_met_missed_or_absent(drill: Make) -> None:
    assert drill(rto_seconds=900.0).rto_met is True
    assert drill(rto_seconds=901.0).rto_met is False
    assert drill(rto_seconds=None).rto_met is False
    assert drill(rto_target_seconds=None).rto_met is None
    assert drill(rpo_seconds=90000.0).rpo_met is False


def test_the_json_report_has_the_latest_drill_first_and_no_pictures(
    drill: Make, report: Make, png: bytes
) -> None:
    older = drill(id="a", started=drill().started - dt.timedelta(days=7), screenshot_png=png)
    document = json.loads(json_report(report(older, drill(id="b"))))
    assert [fields["id"] for fields in document["drills"]] == ["b", "a"]
    assert "screenshot_png" not in document["drills"][0]
    assert document["vms"][0]["rpo_state"] == "met"


def test_a_drill_for_machines_survives_any_detail(drill: Make) -> None:
    check = CheckResult(name="x", passed=False, seconds=0.5, detail="\x1b\x00 <b>\n")
    fields = drill_fields(drill(checks=(check,)))
    assert json.loads(json.dumps(fields))["checks"][0]["detail"] == "\x1b\x00 <b>\n"


def test_structs_are_values(drill: Make, report: Make) -> None:
    assert isinstance(drill(), DrillResult) and isinstance(report(), ReportInput)
    with pytest.raises(AttributeError):
        drill().vm = "other"
    assert msgspec.structs.replace(drill(), vm="other") != drill()


def test_the_document_keeps_its_fields_and_tells_what_is_wrong(report: Make, row: Make) -> None:
    document = json.loads(json_report(report(vms=(row(rpo_state="missed"),))))
    assert document.keys() == {
        "generated", "repository", "drvm_version", "host", "attention", "vms", "drills", "runs",
        "jobs", "checks", "storage", "problems", "unreachable_hosts",
    }  # fmt: skip
    (concern,) = document["attention"]
    assert concern.keys() == {"key", "kind", "severity", "vm", "vm_uuid", "text", "hint", "since"}
