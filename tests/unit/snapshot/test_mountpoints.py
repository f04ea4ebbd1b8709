"""Which file systems of a guest are frozen."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError
from drvm.host.model import Domain
from drvm.snapshot.mountpoints import Chosen, MountPoints, choose, mounted
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_agent import ScriptedDomain

THERE = frozenset({"/", "/srv", "/tmp"})


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (MountPoints(), ("/", "/srv", "/tmp")),
        (MountPoints(include=("/srv",)), ("/srv",)),
        (MountPoints(exclude=("/tmp",)), ("/", "/srv")),
        (MountPoints(("/", "/srv"), ("/srv",)), ("/",)),
        (MountPoints(("/srv",), ("/srv",)), ()),
    ],
)
def test_included_without_excluded(wanted: MountPoints, chosen: tuple[str, ...]) -> None:
    assert choose(wanted, THERE) == Chosen(chosen)


def test_what_the_guest_does_not_have_is_a_warning() -> None:
    assert choose(MountPoints(("/srv", "/a"), ("/b",)), THERE) == Chosen(
        ("/srv",), ("the guest has no file system at /a", "the guest has no file system at /b")
    )


_points = st.sets(st.sampled_from(["/", "/srv", "/tmp", "/a", "D:\\"]))


@given(_points, _points, _points)
def test_only_what_is_there_is_ever_chosen(
    include: set[str], exclude: set[str], there: set[str]
) -> None:
    chosen = choose(MountPoints(tuple(include), tuple(exclude)), frozenset(there)).mount_points
    assert set(chosen) <= there - exclude
    assert not include or set(chosen) <= include


def asked(answer: Any) -> frozenset[str]:
    domain = ScriptedDomain(FakeClock(), file_systems=answer)
    return mounted(cast(Domain, domain), 5)


def test_the_agent_says_where_its_file_systems_are() -> None:
    assert asked([{"mountpoint": "/", "name": "vda1"}, {"mountpoint": "/srv"}]) == {"/", "/srv"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(_json | st.lists(st.fixed_dictionaries({"mountpoint": _json})))
def test_whatever_an_agent_says_is_understood_or_refused(answer: Any) -> None:
    try:
        points = asked(answer)
    except AgentError:
        return
    assert all(isinstance(point, str) and point for point in points)


@pytest.mark.parametrize(
    "answer", [[{"mountpoint": "/"}] * 1001, [{"mountpoint": "x" * 2000}]], ids=["many", "long"]
)
def test_a_flood_is_refused(answer: Any) -> None:
    with pytest.raises(AgentError, match="not understood"):
        asked(answer)
