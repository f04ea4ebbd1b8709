"""Fault 21: two restores to one name, and machines that come while a restore is under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.errors import PreflightFailed
from drvm.host.model import Host
from drvm.restore import claims
from drvm.restore.claims import check_free, claimed
from tests.fakes.chain_host import FakeDomain, FakeHost

ONE, TWO = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(claims, "shared_directory", lambda: tmp_path / "drvm")
    return tmp_path


def host(*domains: FakeDomain) -> Host:
    made: Host = FakeHost(*domains)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("name", "uuid", "kind"), [("a", TWO, "name a"), ("b", ONE, f"uuid {ONE}")]
)
def test_a_name_and_a_uuid_are_claimed_by_one_restore_at_a_time(
    name: str, uuid: str, kind: str
) -> None:
    with claimed(host(), "a", ONE):
        with pytest.raises(PreflightFailed) as caught, claimed(host(), name, uuid):
            pass
        assert kind in caught.value.problems[0]
        assert "another name" in caught.value.problems[0]
    with claimed(host(), name, uuid):
        pass


def test_restores_to_different_machines_or_hosts_do_not_meet() -> None:
    other = FakeHost()
    other.uri = "qemu+ssh://kvm2/system"
    there: Host = other  # type: ignore[assignment]
    with claimed(host(), "a", ONE), claimed(host(), "b", TWO), claimed(there, "a", ONE):
        pass


def test_a_refused_claim_leaves_nothing_claimed() -> None:
    with claimed(host(), "a", ONE):
        with pytest.raises(PreflightFailed), claimed(host(), "b", ONE):
            pass
        with claimed(host(), "b", TWO):
            pass


def test_a_name_is_never_a_path(run: Path) -> None:
    with claimed(host(), "../../etc/passwd", ONE):
        assert {path.name for path in run.iterdir()} == {"drvm"}


def test_who_may_not_write_below_run_restores_without_a_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "shared_directory", lambda: None)
    with claimed(host(), "a", ONE), claimed(host(), "a", ONE):
        pass


@pytest.mark.parametrize(
    ("there", "replace", "says"),
    [
        (FakeDomain("a", TWO, {}, running=False), False, "has come"),
        (FakeDomain("b", ONE, {}, running=False), False, "has come"),
        (FakeDomain("a", ONE, {}, running=False), False, "has come"),
        (FakeDomain("a", TWO, {}, running=False), True, "has come"),
        (FakeDomain("b", ONE, {}, running=False), True, "has come"),
        (FakeDomain("a", ONE, {}, running=True), True, "was started"),
        (FakeDomain("a", ONE, {}, running=False, saved=True), True, "managedsave-remove a"),
    ],
)
def test_what_came_since_the_plan_is_refused(there: FakeDomain, replace: bool, says: str) -> None:
    with pytest.raises(PreflightFailed) as caught:
        check_free(host(there), "a", ONE, replace=replace)
    assert says in caught.value.problems[0]


def test_a_target_that_is_as_it_was_is_free() -> None:
    check_free(host(FakeDomain("c", TWO, {})), "a", ONE, replace=False)
    check_free(host(), "a", ONE, replace=True)
    check_free(host(FakeDomain("a", ONE, {}, running=False)), "a", ONE, replace=True)
