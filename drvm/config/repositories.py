"""Where points are kept: the repository, and the second ones that copies go to."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drvm.config.fields import (
    AbsolutePath,
    Endpoint,
    Name,
    RateMibPerSecond,
    RepositoryUrl,
    Text,
)
from drvm.config.section import ScheduledSection, Section, checked, matches


class BandwidthConfig(Section):
    upload_mib_s: RateMibPerSecond | None = Field(default=None, alias="upload")
    download_mib_s: RateMibPerSecond | None = Field(default=None, alias="download")


class HourlyBandwidthConfig(BandwidthConfig):
    """Instead of the usual one, while ``when`` lasts; what it does not name is as usual."""

    when: Text

    @field_validator("when")
    @classmethod
    def _is_window(cls, value: str, info: ValidationInfo) -> str:
        return checked(value, "window", info)


class RepositoryBandwidthConfig(BandwidthConfig):
    at_times: tuple[HourlyBandwidthConfig, ...] = ()
    time_zone: Text = "UTC"

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        return checked(value, "time_zone", info)


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
    bandwidth: RepositoryBandwidthConfig | None = None
    max_parallel: Annotated[int, Field(ge=1, le=64)] | None = None
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


class CopyConfig(ScheduledSection):
    name: Name
    repository: RepositoryConfig
    vms: Annotated[tuple[Text, ...], Field(min_length=1)] = ("*",)

    def covers(self, vm: str) -> bool:
        return matches(vm, self.vms)
