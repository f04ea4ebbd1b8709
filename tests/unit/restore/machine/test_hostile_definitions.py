"""Fault 19, the domain XML: nothing outside the target is touched, time and memory are bounded."""

from __future__ import annotations

import pytest

from drvm.core.errors import RestoreError
from drvm.restore.machine.definition import DefinitionSpec, rebuild
from drvm.restore.machine.disks import DiskImage
from tests.unit.restore.hostile import DISARMED, FORBIDDEN, REFUSED, domain
from tests.unit.restore.machines import CLONE, assert_harmless

SPEC = DefinitionSpec(CLONE, {"vda": DiskImage("/restored/vda.qcow2", "qcow2")})


def test_the_frame_of_the_corpus_itself_is_a_domain() -> None:
    made = rebuild(domain(), SPEC)
    assert_harmless(made, SPEC)
    assert made.dropped == ()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(RestoreError) as caught:
        rebuild(REFUSED[name], SPEC)
    assert caught.value.hint or caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", DISARMED)
def test_disarmed(name: str) -> None:
    made = rebuild(DISARMED[name], SPEC)
    assert_harmless(made, SPEC)
    for word in FORBIDDEN:
        assert word not in made.xml
    for line in (*made.dropped, *made.changed):
        assert line.isprintable()


@pytest.mark.parametrize("name", DISARMED)
def test_disarmed_in_isolation_too(name: str) -> None:
    spec = DefinitionSpec(CLONE, SPEC.disks, isolate_to="drill-net", virt_type="qemu")
    assert_harmless(rebuild(DISARMED[name], spec), spec)


def test_the_corpus_is_not_small() -> None:
    assert len(REFUSED) + len(DISARMED) >= 100
