"""The keep_* keys of a policy reach retention in its own words."""

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import ConfigError, HostUnreachable
from drvm.upkeep.retention import NO_RULES, Rules
from drvm.wiring.upkeep import plan_prune_of, rules_of
from tests.fakes.chain_host import FakeHost
from tests.unit.repository.conftest import Vault, cheap_key_derivation, vault

__all__ = ["cheap_key_derivation", "vault"]

POLICY = """
policies:
  - name: nightly
    vms: ["*"]
    time_zone: Europe/Berlin
"""
KEEPS = """\
    keep_last: 1
    keep_hourly: 2
    keep_daily: 3
    keep_weekly: 4
    keep_monthly: 5
    keep_yearly: 6
    keep_within: 7d
"""


def rules(text: str) -> Rules:
    return rules_of(parse_config(text.encode(), "c.yaml", {}).policies[0])


def test_every_rule_of_a_policy_arrives() -> None:
    assert rules(POLICY + KEEPS) == Rules(1, 2, 3, 4, 5, 6, 7 * 86400.0, "Europe/Berlin")


def test_without_a_policy_or_without_rules_there_are_none() -> None:
    assert rules_of(None) == NO_RULES
    assert rules(POLICY).empty


def test_points_of_which_nobody_can_tell_the_policy_are_planned_to_stay(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their machine may be on a host that does not answer, with a tag that another policy names."""
    vault.save([b""], definition=b"<domain><title>#brief</title></domain>")
    vault.save([b""], definition=b"<domain><title>#brief</title></domain>")
    text = "policies: [{name: short, tags: [brief], keep_last: 1}]"
    settings = resolve(parse_config(text.encode(), "c.yaml", {}), {})
    lost = HostUnreachable("no route to kvm2")

    class Far(FakeHost):
        def domains(self) -> list[Any]:
            if away:
                raise lost
            return []

    wiring: Any = SimpleNamespace(
        settings=settings,
        repository=lambda: vault.repository,
        hosts=lambda: [Far()],
        clock=SystemClock(),
    )
    for away in (True, False):
        plan = plan_prune_of(wiring, settled=dt.timedelta(0))
        assert [decision.doubt for decision in plan.decisions] == [away, away]
        assert len(plan.going) == (0 if away else 1)


@pytest.mark.parametrize("key", ["keep_last: 0", "keep_daily: -1", "keep_within: 0s"])
def test_a_rule_that_would_keep_nothing_is_a_mistake(key: str) -> None:
    with pytest.raises(ConfigError):
        rules(f"{POLICY}    {key}\n")
