"""The keep_* keys of a policy reach retention in its own words."""

import pytest

from drvm.config.load import parse_config
from drvm.core.errors import ConfigError
from drvm.upkeep.retention import NO_RULES, Rules
from drvm.wiring.upkeep import rules_of

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


@pytest.mark.parametrize("key", ["keep_last: 0", "keep_daily: -1", "keep_within: 0s"])
def test_a_rule_that_would_keep_nothing_is_a_mistake(key: str) -> None:
    with pytest.raises(ConfigError):
        rules(f"{POLICY}    {key}\n")
