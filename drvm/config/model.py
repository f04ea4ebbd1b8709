"""What a config file may say. ``config.example.yaml`` explains every key to people.

Models stop at the command line and the wiring: rooms below take plain values. A key's unit is in
the attribute's name, and in the value that people write (``rpo: 24h`` is ``rpo_s``).
"""

from __future__ import annotations

import fnmatch
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from drvm.config.fields import (
    AbsolutePath,
    DurationText,
    Endpoint,
    HostUri,
    Name,
    Pattern,
    RateMibPerSecond,
    RepositoryUrl,
    SizeBytes,
    Text,
    WholeSeconds,
)

Compression = Literal["fast", "default", "high"]
DedupTrust = Literal["own", "verified", "repository"]


class Section(BaseModel):
    """Every mapping of the file: no key but the known ones, nothing converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BandwidthConfig(Section):
    upload_mib_s: RateMibPerSecond | None = Field(default=None, alias="upload")
    download_mib_s: RateMibPerSecond | None = Field(default=None, alias="download")


class ObjectLockConfig(Section):
    mode: Literal["governance", "compliance"]
    days: Annotated[int, Field(ge=1, le=3650)]


class RepositoryConfig(Section):
    url: RepositoryUrl
    endpoint: Endpoint | None = None
    region: Text | None = None
    profile: Text | None = None
    password_file: AbsolutePath | None = None
    password_command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    bandwidth: BandwidthConfig | None = None
    object_lock: ObjectLockConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.password_file is not None and self.password_command is not None:
            raise ValueError("password_file and password_command exclude each other")
        if not self.url.startswith("s3:"):
            for key in ("endpoint", "region", "profile", "bandwidth", "object_lock"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} belongs to s3:// repositories only")
        return self


class HostConfig(Section):
    uri: HostUri


class AgentCheck(Section):
    """The guest agent answers."""


class CommandCheck(Section):
    """A command in the guest ends as expected."""

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    expect_exit: Annotated[int, Field(ge=0, le=255)] = 0
    expect_output: Pattern | None = None
    timeout_s: DurationText = Field(default=30.0, alias="timeout")


class CheckConfig(Section):
    """One check: a mapping of one key, which is its kind. A new kind is a model and a line."""

    agent: AgentCheck | None = None
    command: CommandCheck | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(kinds) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"a check is exactly one of: {known} (write agent: {{}})")
        return self


class DrillConfig(Section):
    schedule: Text | None = None
    directory: AbsolutePath | None = None
    rto_s: DurationText | None = Field(default=None, alias="rto")
    boot_timeout_s: DurationText = Field(default=300.0, alias="boot_timeout")
    checks: tuple[CheckConfig, ...] = (CheckConfig(agent=AgentCheck()),)

    @field_validator("schedule")
    @classmethod
    def _fires(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else _checked(value, "schedule", info)


class FreezeConfig(Section):
    include: tuple[Text, ...] = ()
    exclude: tuple[Text, ...] = ()


_Keep = Annotated[int, Field(ge=1, le=10_000)] | None


class PolicyConfig(Section):
    name: Name
    vms: Annotated[tuple[Text, ...], Field(min_length=1)]
    schedule: Text | None = None
    time_zone: Text = "UTC"
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

    @field_validator("schedule")
    @classmethod
    def _fires(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else _checked(value, "schedule", info)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.engine == "pull" and self.changed_blocks == "standing-overlay":
            raise ValueError("engine: pull leaves no overlay standing (changed_blocks)")
        return self

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        return _checked(value, "time_zone", info)

    def covers(self, vm: str) -> bool:
        return any(fnmatch.fnmatchcase(vm, pattern) for pattern in self.vms)

    def excluded_disks(self, vm: str) -> frozenset[str]:
        """The targets that are left out of this VM's points on purpose."""
        return frozenset(
            target
            for pattern, targets in self.exclude_disks.items()
            if fnmatch.fnmatchcase(vm, pattern)
            for target in targets
        )


class ScheduledSection(Section):
    schedule: Text | None = None
    time_zone: Text = "UTC"

    @field_validator("schedule")
    @classmethod
    def _fires(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else _checked(value, "schedule", info)

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        return _checked(value, "time_zone", info)


class CopyConfig(ScheduledSection):
    name: Name
    repository: RepositoryConfig
    vms: Annotated[tuple[Text, ...], Field(min_length=1)] = ("*",)

    def covers(self, vm: str) -> bool:
        return any(fnmatch.fnmatchcase(vm, pattern) for pattern in self.vms)


class RepositoryCheckConfig(ScheduledSection):
    read_data_percent: Annotated[float, Field(ge=0, le=100)] = 10.0


class GcConfig(ScheduledSection):
    grace_s: DurationText = Field(default=86400.0, alias="grace")
    give_up_after_s: DurationText = Field(default=604800.0, alias="give_up_after", ge=3600)
    max_rewrite_bytes: SizeBytes = Field(
        default="4 GiB", alias="max_rewrite", validate_default=True
    )


class DaemonConfig(Section):
    max_parallel: Annotated[int, Field(ge=1, le=64)] = 2


class Config(Section):
    repository: RepositoryConfig | None = None
    hosts: Annotated[tuple[HostConfig, ...], Field(min_length=1)] = (
        HostConfig(uri="qemu:///system"),
    )
    state_dir: AbsolutePath = Field(default="/var/lib/drvm", validate_default=True)
    cache_dir: AbsolutePath = Field(default="/var/cache/drvm", validate_default=True)
    overlay_dir: AbsolutePath | None = None
    overlay_reserve_bytes: SizeBytes = Field(
        default="1 GiB", alias="overlay_reserve", validate_default=True
    )
    index_memory_bytes: SizeBytes = Field(
        default="64 MiB", alias="index_memory", validate_default=True
    )
    id_cache_bytes: SizeBytes = Field(default="8 GiB", alias="id_cache", validate_default=True)
    compression: Compression = "default"
    dedup_trust: DedupTrust = "verified"
    policies: tuple[PolicyConfig, ...] = ()
    copies: tuple[CopyConfig, ...] = ()
    gc: GcConfig = GcConfig()
    check: RepositoryCheckConfig = RepositoryCheckConfig()
    daemon: DaemonConfig = DaemonConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for section, names in (
            ("policies", [policy.name for policy in self.policies]),
            ("copies", [copy.name for copy in self.copies]),
            ("hosts", [host.uri for host in self.hosts]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{section}: given twice: {', '.join(twice)}")
        return self


def _checked(value: str, kind: str, info: ValidationInfo) -> str:
    """By the rules that ``load.parse_config`` was given; rooms on one level don't import each
    other, so cron's come in as an argument."""
    rules = info.context or {}
    problem = rules[kind](value) if kind in rules else None
    if problem is not None:
        raise ValueError(problem)
    return value
