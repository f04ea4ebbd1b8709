from __future__ import annotations

import datetime as dt
from typing import Any, cast

from drvm.config.load import parse_config
from drvm.host.model import DomainState, Host
from drvm.wiring.fleet import Look, Seen, look_at_all, survey
from drvm.wiring.selection import Choice, PointPolicies
from tests.fakes.chain_host import FakeDomain, FakeHost

CONFIG = b"""
policies:
  - {name: careful, vms: [db1], engine: pull}
  - {name: nightly, vms: ["*"]}
"""


class Machine(FakeDomain):
    """``now``: what it does."""

    now = DomainState.RUNNING

    def state(self) -> DomainState:
        return self.now

    def external_snapshot_names(self) -> list[str]:
        return ["upgrade"] if self.name == "old1" else []


def test_every_vm_has_the_engine_that_its_policy_and_its_state_ask_for() -> None:
    vms = [Machine(name, str(n), {}) for n, name in enumerate(["db1", "off1", "old1", "web1"])]
    vms[1].now = DomainState.SHUTOFF
    moving = Machine("moving", "9", {})
    moving.now = DomainState.OTHER
    host = cast(Host, cast(Any, FakeHost(*vms, moving)))
    policies = parse_config(CONFIG, "config.yaml", {}).policies

    found = {vm.name: vm.engine for vm in look_at_all([host], policies, engines=True).seen}
    assert found.pop("moving") is None
    told = {name: (e.engine, e.reason) for name, e in found.items() if e is not None}
    assert told == {
        "db1": ("pull", "its policy says so"),
        "off1": ("offline", "it is off"),
        "old1": ("pull", "its external snapshot upgrade must stay as it is"),
        "web1": ("external", "it is running"),
    }


def test_a_machine_that_two_hosts_have_is_where_it_runs() -> None:
    policies = parse_config(CONFIG, "config.yaml", {}).policies
    runs = Seen("db1", "1", "qemu+ssh://kvm1/system", "running", Choice(policies[0]))
    left = Seen("db1", "1", "qemu+ssh://kvm2/system", "shutoff", Choice())
    for seen in ((runs, left), (left, runs)):
        look = Look(seen)
        known = PointPolicies(policies, look.by_uuid, (), lambda _: b"")
        (vm,) = survey(look, (), known, dt.datetime(2026, 11, 23, tzinfo=dt.UTC))
        assert (vm.host, vm.policy, vm.doubt) == (runs.host, "careful", "")
