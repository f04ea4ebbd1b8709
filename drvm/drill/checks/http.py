"""A web page of the guest's has the expected status and content."""

from __future__ import annotations

from dataclasses import dataclass

from drvm.config.checks import GuestAddress, HostName, Port, Statuses, TimeLimit, UrlPath
from drvm.config.fields import AbsolutePath, Pattern
from drvm.core.text import printable
from drvm.drill.checks.base import Attempt, GuestUnderTest, HttpAsked, Need
from drvm.drill.checks.reaching import address_of
from drvm.drill.checks.tcp import NO_WIRE

_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """Implements ``Check``. Redirects are followed on the guest's own addresses only, five of
    them. ``expect_body``: a regular expression searched for in the first MiB. ``host``: the name
    that the request asks for, and TLS. ``ca_file``: on this host; without it any certificate will
    do, as the name that stands in it can't be the isolated guest's address."""

    port: Port | None = None
    path: UrlPath = "/"
    tls: bool = False
    host: HostName | None = None
    expect_status: Statuses = (200,)
    expect_body: Pattern | None = None
    ca_file: AbsolutePath | None = None
    address: GuestAddress | None = None
    timeout_s: TimeLimit = 30.0

    def __post_init__(self) -> None:
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file is for tls: true")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"network"})

    @property
    def name(self) -> str:
        place = self.host or self.address or ""
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.tls else 'http'} {place}{port}{self.path}"

    @property
    def proves(self) -> str:
        page = printable(self.path, _SHOWN_CHARS)
        status = " or ".join(map(str, self.expect_status))
        words = (
            f"the guest served {page} over {'HTTPS' if self.tls else 'HTTP'} with status {status}"
        )
        if self.tls:
            words += ", its certificate " + ("verified" if self.ca_file else "not verified")
        if self.expect_body is None:
            return words
        return f"{words} and a content that matches {printable(self.expect_body, _SHOWN_CHARS)}"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        if guest.wire is None:
            return NO_WIRE
        to = address_of(guest, self.address)
        if isinstance(to, Attempt):
            return to
        asked = HttpAsked(
            port=self.port or (443 if self.tls else 80),
            path=self.path,
            tls=self.tls,
            host=self.host,
            ca_file=self.ca_file,
            expect_status=self.expect_status,
            expect_body=self.expect_body,
        )
        return guest.wire.http(to, asked, self.timeout_s)
