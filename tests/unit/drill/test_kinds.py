"""A kind of check is a file and a line: the config takes what its dataclass says."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import pytest

from drvm.config.checks import Command, GuestAddress, Kinds, TimeLimit, section_of
from drvm.config.load import parse_config
from drvm.config.show import example_text, shown_text
from drvm.core.errors import ConfigError
from drvm.drill.checks.registry import KINDS
from drvm.drill.checks.tcp import TcpCheck

_TOOLS = {"clock", "processes"}


@dataclass(frozen=True, slots=True)
class PingCheck:
    """Of a kind that drvm does not have."""

    address: GuestAddress
    run: Command = ("ping",)
    timeout_s: TimeLimit = 5.0

    def __post_init__(self) -> None:
        if self.timeout_s > 60:
            raise ValueError("a ping has a minute")


def checks_of(text: str, kinds: Kinds) -> tuple[object, ...]:
    text = f"policies:\n  - name: a\n    vms: [a]\n    drill:\n      checks:\n        - {text}\n"
    config = parse_config(text.encode(), "c.yaml", {}, lambda: kinds)
    again = parse_config(shown_text(config).encode(), "c.yaml", {}, lambda: kinds)
    assert again == config
    (policy,) = config.policies
    assert policy.drill is not None
    return tuple(asked.check for asked in policy.drill.checks)


def test_a_new_kind_is_known_to_the_config_by_its_dataclass_alone() -> None:
    kinds = {**KINDS, "ping": PingCheck}
    assert checks_of("ping: {address: 192.0.2.7, timeout: 20s}", kinds) == (
        PingCheck("192.0.2.7", timeout_s=20.0),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ping: {address: 192.0.2.7, timeout: 2m}", ["line 6", "checks[0].ping: a ping has"]),
        ("ping: {address: nowhere}", ["checks[0].ping.address", "is no address"]),
        ("ping: {adress: 192.0.2.7}", ["checks[0].ping.adress", "did you mean address?"]),
        ("ping: {address: 192.0.2.7, run: []}", ["checks[0].ping.run", "must not be empty"]),
        ("pign: {}", ["checks[0].pign", "did you mean ping?"]),
        ("{}", ["checks[0]", "a check is exactly one of: agent", "ping"]),
        ("[]", ["checks[0]", "must be a mapping of keys"]),
    ],
)
def test_what_its_dataclass_does_not_take_is_a_mistake_with_its_place(
    text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        checks_of(text, {**KINDS, "ping": PingCheck})
    told = " ".join(caught.value.problems)
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_makes_a_check_another_can_be_said_in_the_config(kind: str) -> None:
    said = set(section_of(KINDS[kind]).model_fields)
    assert said == {field.name for field in fields(KINDS[kind])} - _TOOLS


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_shows_each_kind_and_each_of_its_keys(kind: str) -> None:
    keys = {field.alias or name for name, field in section_of(KINDS[kind]).model_fields.items()}
    named = set(re.findall(r"(\w+):(?: |$)", example_text(), re.M))
    assert {kind, *keys} <= named


def test_only_a_config_with_checks_asks_which_kinds_there_are() -> None:
    def ask() -> Kinds:
        raise AssertionError

    parse_config(b"state_dir: /x", "c.yaml", {}, ask)
    assert checks_of("tcp: {port: 22}", KINDS) == (TcpCheck(22),)
