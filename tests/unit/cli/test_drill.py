"""``drvm drill`` of several machines, of which one can't be drilled."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.cli.commands import drill
from drvm.config.load import parse_config
from drvm.core.errors import PreflightFailed, UsageError
from drvm.wiring.drills import AS_CONFIGURED, Owed

CONFIG = b"""
policies:
  - {name: each, vms: ["web*"], drill: {schedule: "0 5 * * 0"}}
  - {name: shop, vms: ["db*"], drill: {schedule: "0 5 * * 0", stages: [{vms: ["*"]}]}}
"""
EACH, SHOP = parse_config(CONFIG, "config.yaml", {}).policies


def point(vm: str) -> Any:
    return SimpleNamespace(id=vm, manifest=SimpleNamespace(vm=vm, vm_uuid=vm))


def planned(_wiring: Any, _policy: Any, points: Any, _wish: Any) -> list[Any]:
    names = [point.id for point in points]
    if "files" in names:
        raise UsageError("point files is of image files without a VM")
    if "web1" in names:
        raise PreflightFailed("web1 can't be drilled on kvm1", problems=["too much memory"])
    return [",".join(names)]


def test_a_machine_that_can_not_be_drilled_keeps_no_other_from_its_drill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    due = [
        Owed(EACH, (point("web1"), point("files"), point("web2"), point("web1"))),
        Owed(SHOP, (point("db1"), point("db2"))),
    ]
    monkeypatch.setattr(drill, "good_points", lambda *_: ())
    monkeypatch.setattr(drill, "owed", lambda *_: due)
    monkeypatch.setattr(drill, "plan_policy", planned)
    wiring: Any = SimpleNamespace(repository=lambda: None)
    invocation: Any = SimpleNamespace(stderr=io.StringIO())
    plans, refused = drill._plans(invocation, wiring, (), None, AS_CONFIGURED, due=True)
    assert plans == ["web2", "db1,db2"]
    assert [type(error) for error in refused] == [PreflightFailed, UsageError]
    del refused[1:]
    with pytest.raises(PreflightFailed, match="web1 can't be drilled"):
        drill._end(invocation, [], refused)
    assert invocation.stderr.getvalue() == ""


def test_the_reasons_behind_the_first_are_told_too() -> None:
    refused: list[Any] = [
        PreflightFailed(f"{vm} can't be drilled on kvm1", problems=["no room", "no pool"])
        for vm in ("web1", "web2")
    ]
    invocation: Any = SimpleNamespace(stderr=io.StringIO())
    with pytest.raises(PreflightFailed, match="web1"):
        drill._end(invocation, [], refused)
    told = "drvm: error: web2 can't be drilled on kvm1: no room; no pool\n"
    assert invocation.stderr.getvalue() == told
