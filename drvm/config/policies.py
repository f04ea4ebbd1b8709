"""Policies: which machines are protected, how, when, and which of their points stay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drvm.config.drills import DrillConfig
from drvm.config.fields import DurationText, Name, RateMibPerSecond, Text, WholeSeconds
from drvm.config.section import ScheduledSection, Section, matches

Command = Annotated[tuple[Text, ...], Field(min_length=1)]
"""A program and its arguments; no shell."""


class FreezeConfig(Section):
    include: tuple[Text, ...] = ()
    exclude: tuple[Text, ...] = ()


_Keep = Annotated[int, Field(ge=1, le=10_000)] | None


class HooksConfig(Section):
    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()
    timeout_s: DurationText = Field(default=60.0, alias="timeout")


class RetryConfig(Section):
    times: Annotated[int, Field(ge=0, le=20)] = 3
    after_s: DurationText = Field(default=300.0, alias="after")


class PolicyConfig(ScheduledSection):
    name: Name
    vms: tuple[Text, ...] = ()
    tags: tuple[Name, ...] = ()
    hosts: tuple[Text, ...] = ()
    exclude: tuple[Text, ...] = ()
    jitter_s: DurationText | None = Field(default=None, alias="jitter")
    retry: RetryConfig = RetryConfig()
    hooks: HooksConfig = HooksConfig()
    consistency: Literal["best-effort", "filesystem"] = "best-effort"
    freeze_timeout_s: WholeSeconds = Field(default=5, alias="freeze_timeout", le=10)
    read_bandwidth_mib_s: RateMibPerSecond | None = Field(default=None, alias="read_bandwidth")
    freeze: FreezeConfig = FreezeConfig()
    group: bool = False
    commit_bandwidth_mib_s: RateMibPerSecond | None = Field(default=None, alias="commit_bandwidth")
    changed_blocks: Literal["checkpoint", "standing-overlay", "full-read"] = "checkpoint"
    engine: Literal["auto", "external", "pull"] = "auto"
    exclude_disks: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    rpo_s: DurationText | None = Field(default=None, alias="rpo")
    keep_last: _Keep = None
    keep_hourly: _Keep = None
    keep_daily: _Keep = None
    keep_weekly: _Keep = None
    keep_monthly: _Keep = None
    keep_yearly: _Keep = None
    keep_within_s: DurationText | None = Field(default=None, alias="keep_within")
    drill: DrillConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.vms and not self.tags:
            raise ValueError("must name vms, or tags")
        if self.engine == "pull" and self.changed_blocks == "standing-overlay":
            raise ValueError("engine: pull leaves no overlay standing (changed_blocks)")
        return self

    def covers(self, vm: str, tags: Collection[str] | None, host: str | None) -> bool | None:
        """Whether it protects such a machine: by its name or a tag, on one of its hosts (``host``
        is a URI), unless it is excluded by name. ``None``: that depends on what can't be told, by
        ``tags`` or ``host`` of ``None``."""
        if matches(vm, self.exclude):
            return False
        tagged = None if tags is None else not set(self.tags).isdisjoint(tags)
        chosen = matches(vm, self.vms) or (tagged if self.tags else False)
        here = True if not self.hosts else None if host is None else matches(host, self.hosts)
        if chosen is False or here is False:
            return False
        return None if chosen is None or here is None else True

    def rank(self, vm: str) -> int:
        """Its place among the VMs of this policy, from 0: that of the first pattern that names it,
        and behind all of them where a tag chose it."""
        ranks = (rank for rank, pattern in enumerate(self.vms) if matches(vm, (pattern,)))
        return next(ranks, len(self.vms))

    def excluded_disks(self, vm: str) -> frozenset[str]:
        """The targets that are left out of this VM's points on purpose."""
        return frozenset(
            target
            for pattern, targets in self.exclude_disks.items()
            if matches(vm, (pattern,))
            for target in targets
        )
