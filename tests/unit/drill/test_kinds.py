"""The config knows the same kinds of checks as the drill, with the same fields."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from drvm.config.drills import CheckConfig
from drvm.drill.checks.registry import KINDS

_INJECTED = {"clock", "processes"}
_BY_ITSELF = {"agent": {"timeout_s"}}


def test_each_kind_of_check_can_be_asked_for_in_the_config() -> None:
    assert set(CheckConfig.kinds()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_takes_what_its_config_says_and_has_the_same_defaults(kind: str) -> None:
    (model,) = (
        inner
        for inner in CheckConfig.model_fields[kind].annotation.__args__  # type: ignore[union-attr]
        if inspect.isclass(inner) and inner is not type(None)
    )
    made = {field.name: field for field in dataclasses.fields(KINDS[kind])}  # type: ignore[arg-type]
    said = model.model_fields
    assert set(said) == set(made) - _INJECTED - _BY_ITSELF.get(kind, set())
    for name, field in said.items():
        if not field.is_required():
            assert field.get_default() == made[name].default, name
