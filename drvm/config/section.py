"""What every mapping of the config has in common."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from drvm.config.fields import Text


class Section(BaseModel):
    """Every mapping of the file: no key but the known ones, nothing converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TimedSection(Section):
    """What has a schedule of its own. Without one it is done only by hand."""

    schedule: Text | None = None

    @field_validator("schedule")
    @classmethod
    def _fires(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else checked(value, "schedule", info)


class ScheduledSection(TimedSection):
    """``blackouts``: windows of the week in ``time_zone``, in which nothing of it begins."""

    time_zone: Text = "UTC"
    blackouts: tuple[Text, ...] = ()

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        return checked(value, "time_zone", info)

    @field_validator("blackouts")
    @classmethod
    def _are_windows(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        checked("\n".join(value), "windows", info)
        return value


def checked(value: str, kind: str, info: ValidationInfo) -> str:
    """By the rules that ``load.parse_config`` was given; rooms on one level don't import each
    other, so cron's come in as an argument."""
    rules = info.context or {}
    problem = rules[kind](value) if kind in rules else None
    if problem is not None:
        raise ValueError(problem)
    return value


def matches(text: str, patterns: Iterable[str]) -> bool:
    """Case matters, as it does to libvirt."""
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
