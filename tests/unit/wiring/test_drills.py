"""What the config says of drills reaches the room of drills in its own words."""

from __future__ import annotations

from drvm.config.drills import CheckConfig, DrillConfig
from drvm.config.load import parse_config
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.registry import KINDS, make_check
from drvm.wiring.drills import drill_checks

CONFIG = b"""
policies:
  - name: nightly
    vms: ["web*"]
    drill:
      checks:
        - agent: {}
        - vms: [web1]
          command: {run: [test, -s, /data], expect_exit: 1, expect_output: "no.*", timeout: 2m}
"""


def config() -> DrillConfig:
    drill = parse_config(CONFIG, "config.yaml", {}).policies[0].drill
    assert drill is not None
    return drill


def test_every_kind_of_check_that_the_config_knows_can_be_made() -> None:
    assert set(CheckConfig.kinds()) == set(KINDS)
    agent, command = drill_checks(config(), "web1")
    assert agent == make_check("agent", {})
    expected = {
        "run": ("test", "-s", "/data"),
        "expect_exit": 1,
        "expect_output": "no.*",
        "timeout_s": 120.0,
    }
    assert command == make_check("command", expected)


def test_a_check_is_for_the_machines_that_it_names_and_the_agent_for_those_without_any() -> None:
    assert drill_checks(config(), "web2") == (AgentCheck(),)
    only = config().model_copy(update={"checks": config().checks[1:]})
    assert drill_checks(only, "web2") == (AgentCheck(),)
