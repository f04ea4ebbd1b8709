"""What the daemon does besides points and drills: retention, collection, checks, and being seen."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drvm.config.fields import AbsolutePath, DurationText, Name, SizeBytes, Text, matching
from drvm.config.section import ScheduledSection, Section


class PruneConfig(ScheduledSection):
    """``drvm prune``."""


class RepositoryCheckConfig(ScheduledSection):
    read_data_percent: Annotated[float, Field(ge=0, le=100)] = 10.0


class GcConfig(ScheduledSection):
    grace_s: DurationText = Field(default=86400.0, alias="grace")
    give_up_after_s: DurationText = Field(default=604800.0, alias="give_up_after", ge=3600)
    max_rewrite_bytes: SizeBytes = Field(
        default="4 GiB", alias="max_rewrite", validate_default=True
    )


HostName = Annotated[
    str,
    matching(
        r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
        "a host name in small letters such as backup.example.org",
    ),
]


class DashboardConfig(Section):
    """``token_file``: who knows what stands in it may look and act. ``host_names``: by which
    browsers know a proxy in front of it; any other name is refused, whoever it leads here."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8467
    address: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    token_file: AbsolutePath
    host_names: Annotated[tuple[HostName, ...], Field(max_length=20)] = ()


class MetricsConfig(Section):
    """``textfile``: for the node exporter; the dashboard has them under /metrics, too."""

    textfile: AbsolutePath | None = None


class DaemonConfig(Section):
    max_parallel: Annotated[int, Field(ge=1, le=64)] = 2
    max_parallel_drills: Annotated[int, Field(ge=1, le=64)] = 1
    dashboard: DashboardConfig | None = None
    metrics: MetricsConfig = MetricsConfig()


class WebhookConfig(Section):
    """The URL is often the secret, so it stands in a file."""

    url_file: AbsolutePath


MailAddress = Annotated[
    str,
    matching(
        r"[A-Za-z0-9._%+=/-]{1,64}@[A-Za-z0-9.-]{1,190}",
        "an address alone, such as drvm@example.org",
    ),
]
"""A plain one, without a name: what can't be more than an address can't become a header."""


class SmtpConfig(Section):
    server: Text
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: Text | None = None
    password_file: AbsolutePath | None = None
    sender: MailAddress
    to: Annotated[tuple[MailAddress, ...], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together")
        if self.user is not None and self.security == "none":
            raise ValueError("a password is not sent without starttls or tls")
        return self


class AppriseConfig(Section):
    urls_file: AbsolutePath


class PingConfig(Section):
    """A dead man's switch elsewhere, which is told regularly that the daemon lives and works."""

    url_file: AbsolutePath
    every_s: DurationText = Field(default=300.0, alias="every", ge=10)


NotifyKind = Literal["failure", "rpo", "drill", "damage", "recovery"]


class NotifyConfig(Section):
    """One way, and what is told by it."""

    name: Name
    webhook: WebhookConfig | None = None
    smtp: SmtpConfig | None = None
    apprise: AppriseConfig | None = None
    ping: PingConfig | None = None
    tell: tuple[NotifyKind, ...] = ("failure", "rpo", "drill", "damage", "recovery")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = ("webhook", "smtp", "apprise", "ping")
        if len([way for way in ways if getattr(self, way) is not None]) != 1:
            raise ValueError(f"a way is exactly one of: {', '.join(ways)}")
        if self.ping is not None and "tell" in self.model_fields_set:
            raise ValueError("a ping tells nothing but that the daemon works: take tell out")
        if not set(self.tell) - {"recovery"}:
            raise ValueError("tell must name what is told, not only recovery from it")
        return self
