"""``drvm drill`` of several machines, of which one can't be drilled."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.cli.commands import drill
from drvm.cli.invocation import DONE_WITH_WARNINGS
from drvm.config.load import parse_config
from drvm.core.errors import Interrupted, PreflightFailed, UsageError
from drvm.core.progress import NoProgress, no_trace
from drvm.drill.group import Absent
from drvm.wiring.drills import AS_CONFIGURED, Owed

CONFIG = b"""
policies:
  - {name: each, vms: ["web*"], drill: {schedule: "0 5 * * 0"}}
  - {name: shop, vms: ["db*"], drill: {schedule: "0 5 * * 0", stages: [{vms: ["*"]}]}}
"""
EACH, SHOP = parse_config(CONFIG, "config.yaml", {}).policies


def point(vm: str) -> Any:
    return SimpleNamespace(id=vm, manifest=SimpleNamespace(id=vm, vm=vm, vm_uuid=vm))


def a_wiring(*policies: Any) -> Any:
    settings = SimpleNamespace(policies=policies)
    return SimpleNamespace(repository=lambda: None, settings=settings)


def planned(_wiring: Any, _policy: Any, points: Any, _wish: Any, _absent: Any) -> list[Any]:
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
    monkeypatch.setattr(drill, "tell_foreign", lambda *_: None)
    wiring: Any = a_wiring(EACH, SHOP)
    invocation: Any = SimpleNamespace(stderr=io.StringIO())
    chosen = drill._chosen(invocation, wiring, (), None, AS_CONFIGURED, due=True)
    assert chosen.plans == ["web2", "db1,db2"]
    assert [type(one.error) for one in chosen.refused] == [PreflightFailed, UsageError]
    assert [one.vm for one in chosen.absent] == ["web1", "files"]
    del chosen.refused[1:]
    with pytest.raises(PreflightFailed, match="web1 can't be drilled"):
        drill._end(invocation, chosen, [])
    assert invocation.stderr.getvalue() == ""


def test_a_machine_that_is_named_and_can_not_be_drilled_keeps_no_other_from_its_drill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(_wiring: Any, manifest: Any, _wish: Any) -> str:
        if manifest.vm == "web1":
            raise PreflightFailed("web1 can't be drilled on kvm1", problems=["no room"])
        return str(manifest.vm)

    monkeypatch.setattr(drill, "chosen_point", lambda _i, _w, vm: point(vm))
    monkeypatch.setattr(drill, "plan_drill_of", plan)
    nothing: Any = None
    names = ("web1", "web2", "web2")
    chosen = drill._chosen(nothing, nothing, names, None, AS_CONFIGURED, due=False)
    assert (chosen.plans, [one.vm for one in chosen.absent]) == (["web2"], ["web1"])


def test_a_group_that_lacks_a_member_ends_with_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Absent("db3", "it has no good point")
    due = [Owed(SHOP, (point("db1"), point("db2")), (lacking,))]
    monkeypatch.setattr(drill, "good_points", lambda *_: ())
    monkeypatch.setattr(drill, "owed", lambda *_: due)
    monkeypatch.setattr(drill, "plan_policy", planned)
    monkeypatch.setattr(drill, "tell_foreign", lambda *_: None)
    wiring: Any = a_wiring(EACH, SHOP)
    chosen = drill._chosen(wiring, wiring, (), None, AS_CONFIGURED, due=True)
    assert chosen.absent == [lacking]
    assert drill._end(wiring, chosen, []) == DONE_WITH_WARNINGS


def test_where_nothing_is_ever_due_as_no_policy_has_a_schedule_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(drill, "good_points", lambda *_: ())
    monkeypatch.setattr(drill, "owed", lambda *_: [])
    invocation: Any = SimpleNamespace(warn=told.append)
    for policies in ((EACH,), (EACH.model_copy(update={"drill": None}),)):
        drill._chosen(invocation, a_wiring(*policies), (), None, AS_CONFIGURED, due=True)
    assert told == ["no policy has a schedule of drills, so nothing is ever due"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("ended by SIGTERM")])
def test_an_interrupt_says_what_has_become_of_the_drills(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ended(*_: Any, **__: Any) -> Any:
        raise error

    chosen = drill._Chosen([], [])
    monkeypatch.setattr(drill, "opened", lambda _: contextlib.nullcontext(a_wiring(EACH)))
    monkeypatch.setattr(drill, "_chosen", lambda *_, **__: chosen)
    monkeypatch.setattr(drill, "carry_out_all", ended)
    progress = lambda: contextlib.nullcontext(NoProgress())  # noqa: E731
    invocation: Any = SimpleNamespace(progress=progress, trace=no_trace)
    with pytest.raises(Interrupted) as caught:
        drill.command.main(["web1"], obj=invocation, standalone_mode=False)
    assert caught.value.message == (str(error) or "interrupted")
    assert "those that had ended are kept" in caught.value.hint


def test_the_reasons_behind_the_first_are_told_too() -> None:
    refused = [
        drill._Refused((vm,), PreflightFailed(f"{vm} can't be", problems=["no room", "no pool"]))
        for vm in ("web1", "web2")
    ]
    invocation: Any = SimpleNamespace(stderr=io.StringIO())
    with pytest.raises(PreflightFailed, match="web1"):
        drill._end(invocation, drill._Chosen([], refused), [])
    told = "drvm: error: web2 can't be: no room; no pool\n"
    assert invocation.stderr.getvalue() == told
