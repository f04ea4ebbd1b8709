"""Recovery drills: how a machine is brought up in isolation, and what must hold then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from drvm.config.checks import AnyCheck
from drvm.config.fields import AbsolutePath, DurationText, HostUri, Text
from drvm.config.section import Section, TimedSection


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
    checks: tuple[AnyCheck, ...] = ()
