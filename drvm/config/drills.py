"""Recovery drills: how a machine is brought up in isolation, and what must hold then."""

from __future__ import annotations

import re
from ipaddress import ip_interface
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from drvm.config.fields import AbsolutePath, DurationText, HostUri, Pattern, Text, matching
from drvm.config.section import Section, TimedSection


def _read_guest_address(value: object) -> str:
    try:
        if not isinstance(value, str) or "%" in value:  # the link is the drill's own
            raise ValueError
        found = ip_interface(value)
    except ValueError:
        raise ValueError(f"{value!r} is no address such as 192.0.2.7 or 192.0.2.7/24") from None
    ip = found.ip
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified:
        raise ValueError(f"{value} can't be the address of a guest")
    return value


GuestAddress = Annotated[str, BeforeValidator(_read_guest_address)]
GuestPath = Annotated[
    str, matching(r"[^\x00-\x1f]{1,1000}", "a path without control characters, 1000 at most")
]
UrlPath = Annotated[
    str, matching(r"/[!-\"$-~]{0,999}", "a path such as /health, in ASCII, without blanks and '#'")
]
HostName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", "a host name such as www.example.org"
    ),
]
Sha256 = Annotated[str, matching(r"[0-9a-fA-F]{64}", "64 hexadecimal digits, as of sha256sum")]
Port = Annotated[int, Field(ge=1, le=65535)]
Status = Annotated[int, Field(ge=100, le=599)]


class AgentCheck(Section):
    """The guest agent answers."""


class CommandCheck(Section):
    """A command in the guest ends as expected."""

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    expect_exit: Annotated[int, Field(ge=0, le=255)] = 0
    expect_output: Pattern | None = None
    timeout_s: DurationText = Field(default=30.0, alias="timeout")


class ConsoleCheck(Section):
    """Text that matches stands on the guest's serial console."""

    expect: Pattern
    timeout_s: DurationText = Field(default=60.0, alias="timeout")

    @model_validator(mode="after")
    def _proves_something(self) -> Self:
        if re.search(self.expect, "", re.MULTILINE):
            raise ValueError("expect matches a console that nothing was written to")
        return self


class FileCheck(Section):
    """A file exists in the guest, and has this content."""

    path: GuestPath
    sha256: Sha256 | None = None
    timeout_s: DurationText = Field(default=60.0, alias="timeout")


class TcpCheck(Section):
    """A TCP port of the guest takes connections, and says what matches."""

    port: Port
    banner: Pattern | None = None
    address: GuestAddress | None = None
    timeout_s: DurationText = Field(default=30.0, alias="timeout")


class HttpCheck(Section):
    """A web page of the guest has this status and content."""

    port: Port | None = None
    path: UrlPath = "/"
    tls: bool = False
    host: HostName | None = None
    expect_status: Annotated[tuple[Status, ...], Field(min_length=1, max_length=20)] = (200,)
    expect_body: Pattern | None = None
    ca_file: AbsolutePath | None = None
    address: GuestAddress | None = None
    timeout_s: DurationText = Field(default=30.0, alias="timeout")

    @model_validator(mode="after")
    def _tls_only(self) -> Self:
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file is for tls: true")
        return self


class ScriptCheck(Section):
    """A program of this host ends well beside the running guest."""

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    timeout_s: DurationText = Field(default=60.0, alias="timeout")


class MalwareCheck(Section):
    """A program of this host finds nothing on the point's mounted disks."""

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    timeout_s: DurationText = Field(default=3600.0, alias="timeout")

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if not any("{disks}" in word for word in self.run):
            raise ValueError("run must say {disks} where the directory to scan belongs")
        return self


class CheckConfig(Section):
    """One check, of one kind, and the machines that it is for. A new kind is a model and a line."""

    agent: AgentCheck | None = None
    command: CommandCheck | None = None
    console: ConsoleCheck | None = None
    file: FileCheck | None = None
    http: HttpCheck | None = None
    malware: MalwareCheck | None = None
    script: ScriptCheck | None = None
    tcp: TcpCheck | None = None
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
