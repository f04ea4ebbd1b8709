"""Records of boots: whole, found again, and not believed where drvm did not write them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import Locked, RestoreError
from drvm.restore.instant.record import VERSION, Boot, BootDisk, Boots

BOOT = Boot(
    version=VERSION,
    name="web1-now",
    vm_uuid="3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001",
    uri="qemu:///system",
    point="0123456789abcdef",
    origin="web1",
    origin_uuid="3f6a2c1e-5d0b-4c5e-9a34-6d72766d0002",
    nonce="fedcba9876543210",
    created="2026-11-23T20:00:00Z",
    disks=(BootDisk("vda", "/images/web1-now-vda.qcow2", "stop"),),
)


@pytest.fixture
def boots(tmp_path: Path) -> Boots:
    return Boots(tmp_path)


def test_what_is_written_is_found_and_listed_until_it_is_removed(boots: Boots) -> None:
    assert boots.names() == []
    assert boots.find("web1-now") is None
    boots.write(BOOT)
    boots.write(BOOT.in_phase("running"))
    assert boots.named("web1-now") == replace(BOOT, phase="running")
    assert boots.names() == ["web1-now"]
    boots.remove("web1-now")
    boots.remove("web1-now")
    assert boots.names() == []


@pytest.mark.parametrize("name", ["web2", "../web1", "", "web1/now"])
def test_a_machine_that_was_not_booted_here_is_told_with_those_that_were(
    boots: Boots, name: str
) -> None:
    boots.write(BOOT)
    with pytest.raises(RestoreError) as refused:
        boots.named(name)
    assert "web1-now" in refused.value.hint


def test_two_can_not_work_on_one_boot_also_with_another_state_directory(
    boots: Boots, tmp_path: Path
) -> None:
    other = Boots(tmp_path / "other")
    with boots.lock("web1-now"), boots.lock("web2"), pytest.raises(Locked), other.lock("web1-now"):
        raise AssertionError("locked twice")
    with boots.lock("web1-now"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"vm_uuid": "../../etc"},
        {"point": "short"},
        {"nonce": "*"},
        {"name": "other"},
        {"nvram": "relative"},
        {"disks": [{"target": "../x", "image": "/images/x"}]},
        {"disks": [{"target": "vda", "image": "relative"}]},
        {"version": 2},
        {"phase": "unknown"},
        {"disks": 7},
    ],
)
def test_a_record_that_drvm_would_not_write_is_refused_and_stays(
    boots: Boots, tmp_path: Path, change: dict[str, Any]
) -> None:
    boots.write(BOOT)
    path = tmp_path / "boots" / "web1-now.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RestoreError, match="not understood"):
        boots.named("web1-now")
    assert path.exists()
