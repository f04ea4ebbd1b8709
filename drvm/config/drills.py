"""Recovery drills: how a machine is brought up in isolation, and what must hold then."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drvm.config.fields import AbsolutePath, DurationText, HostUri, Pattern, Text
from drvm.config.section import Section, TimedSection


class AgentCheck(Section):
    """The guest agent answers."""


class CommandCheck(Section):
    """A command in the guest ends as expected."""

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    expect_exit: Annotated[int, Field(ge=0, le=255)] = 0
    expect_output: Pattern | None = None
    timeout_s: DurationText = Field(default=30.0, alias="timeout")


class CheckConfig(Section):
    """One check, of one kind, and the machines that it is for. A new kind is a model and a line."""

    agent: AgentCheck | None = None
    command: CommandCheck | None = None
    vms: tuple[Text, ...] = ("*",)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        known_kinds = self.kinds()
        if len([kind for kind in known_kinds if getattr(self, kind) is not None]) != 1:
            known = ", ".join(known_kinds)
            raise ValueError(f"a check is exactly one of: {known} (write agent: {{}})")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The keys of which a check has exactly one."""
        return tuple(key for key in cls.model_fields if key != "vms")


class StageConfig(Section):
    """Some machines of a group that is drilled together."""

    vms: Annotated[tuple[Text, ...], Field(min_length=1)]
    wait_s: DurationText | None = Field(default=None, alias="wait")


class DrillConfig(TimedSection):
    method: Literal["restore", "boot"] = "restore"
    host: HostUri | None = None
    directory: AbsolutePath | None = None
    rto_s: DurationText | None = Field(default=None, alias="rto")
    boot_timeout_s: DurationText = Field(default=300.0, alias="boot_timeout")
    stages: tuple[StageConfig, ...] = ()
    checks: tuple[CheckConfig, ...] = (CheckConfig(agent=AgentCheck()),)
