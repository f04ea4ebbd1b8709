"""A drill is planned whole before anything is made: what it will do, and what stands in its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from drvm.core.errors import PreflightFailed, UsageError
from drvm.drill import room as rooms
from drvm.drill.place import is_drill_name
from drvm.drill.plan import network_xml
from drvm.drill.room import RESERVE_BYTES, Room
from tests.unit.drill.conftest import DEFINITION, MAC, VM, Stage


def test_the_drilled_machine_is_the_original_but_for_its_name_and_uuid(stage: Stage) -> None:
    plan = stage.plan()
    machine = fromstring(plan.definition.xml)
    assert machine.findtext("name") == plan.name
    assert machine.findtext("uuid") != VM
    assert machine.find("devices/interface/mac").get("address") == MAC
    assert machine.find("devices/disk/target").get("dev") == "vda"


def test_every_network_card_goes_to_the_drills_own_network(stage: Stage) -> None:
    plan = stage.plan()
    cards = fromstring(plan.definition.xml).findall("devices/interface")
    assert [card.find("source").attrib for card in cards] == [{"network": plan.network}]


def test_the_network_leads_nowhere_and_gives_no_addresses() -> None:
    assert [child.tag for child in fromstring(network_xml("drvm-drill-x"))] == ["name"]


def test_all_that_is_made_has_one_name_and_lies_in_one_directory(stage: Stage) -> None:
    plan = stage.plan()
    assert is_drill_name(plan.name)
    assert plan.network == plan.name
    assert plan.directory == stage.directory / plan.name
    assert [image.path for image in plan.images] == [plan.directory / "vda.raw"]
    assert plan.nvram_path.parent == plan.directory


def test_two_plans_of_one_point_never_meet(stage: Stage) -> None:
    assert stage.plan().name != stage.plan().name


def test_what_the_host_would_have_to_give_is_left_out_and_said(stage: Stage) -> None:
    plan = stage.plan()
    assert "hostdev" not in plan.definition.xml
    assert any("hostdev pci 0000:3b:00.0" in line for line in plan.dropped)


def test_the_plan_knows_how_much_it_will_write_and_hold(stage: Stage) -> None:
    plan = stage.plan()
    assert plan.data_bytes == 65536
    assert plan.memory_bytes == 256 << 20


def test_a_machine_without_a_network_card_needs_no_network(make: Callable[..., Stage]) -> None:
    start, end = DEFINITION.index("<interface"), DEFINITION.index("<hostdev")
    assert make(definition=DEFINITION[:start] + DEFINITION[end:]).plan().network is None


def test_planning_changes_nothing(stage: Stage) -> None:
    stage.plan()
    assert stage.is_clean()
    assert stage.host.calls == []


def test_every_problem_is_said_at_once(make: Callable[..., Stage]) -> None:
    stage = make(definition=DEFINITION.replace("type='qemu'", "type='kvm'", 1))
    stage.room = Room(free_bytes=RESERVE_BYTES, memory_bytes=1 << 20, closed=(Path("/root"),))
    with pytest.raises(PreflightFailed) as caught:
        stage.plan()
    found = "\n".join(caught.value.problems)
    for words in ("has no kvm", "the drill needs", "of memory", "chmod o+x"):
        assert words in found
    assert len(caught.value.problems) == 4
    assert stage.is_clean()


def test_a_machine_for_kvm_can_be_drilled_emulated_where_that_is_asked_for(
    make: Callable[..., Stage],
) -> None:
    stage = make(definition=DEFINITION.replace("type='qemu'", "type='kvm'", 1))
    assert stage.plan(virt_type="qemu").emulated


def test_a_machine_that_was_emulated_before_is_drilled_as_it_was(stage: Stage) -> None:
    assert not stage.plan(virt_type="qemu").emulated


def test_a_point_without_a_machine_can_not_be_drilled(make: Callable[..., Stage]) -> None:
    with pytest.raises(UsageError, match="without a VM"):
        make(definition=None).plan()


def test_a_drill_without_checks_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="proves nothing"):
        stage.plan(checks=())


def test_a_relative_directory_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="not absolute"):
        stage.plan(directory=Path("drills"))


def test_the_room_is_looked_for_where_the_directory_will_be(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    room = rooms.look(closed / "not" / "yet")
    assert room.free_bytes > 0
    assert room.memory_bytes is None or room.memory_bytes > 0
    assert closed in room.closed
    closed.chmod(0o711)
    assert closed not in rooms.look(closed / "not" / "yet").closed
