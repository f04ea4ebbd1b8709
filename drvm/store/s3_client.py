"""The SDK's client, set up for AWS or for other services, and single requests with repetition."""

from __future__ import annotations

import datetime as dt
import ipaddress
import random
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from drvm.core.clock import Clock
from drvm.core.errors import ObjectDamaged, OutcomeUnknown, StoreError, StoreUnreachable
from drvm.store import base
from drvm.store.s3_errors import SDK_ERRORS, Request, interruption, translate
from drvm.store.urls import S3Address, check_endpoint

_AWS = re.compile(r"(?:.+\.)?amazonaws\.com(?:\.cn)?", re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one call may try.

    ``connect_s`` also bounds the sending of each 16 KiB, ``read_s`` each wait for an answer.
    ``attempts`` are waited for 0.25, 0.5, 1, ... up to 8 s, less up to a half by chance; none
    begins when ``total_s`` have passed. Bodies have a deadline of their own: see
    ``SLOWEST_BYTES_S``.
    """

    connect_s: float = 10.0
    read_s: float = 60.0
    attempts: int = 5
    total_s: float = 300.0


SLOWEST_BYTES_S = 16 * 1024
"""A body that comes or goes more slowly than this, besides ``read_s``, is given up."""


class Bucket:
    """Requests to one bucket, below one prefix, with names as the repository knows them.

    ``endpoint`` and ``region`` where they are ``None``, and the credentials, come from the AWS
    chain (environment, profile, instance), or from ``profile`` alone. Nothing is asked of the
    service here.
    """

    def __init__(
        self,
        address: S3Address,
        *,
        endpoint: str | None,
        region: str | None,
        profile: str | None,
        patience: Patience,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self.patience = patience
        self.clock = clock
        self._chance = chance
        request = Request(address.bucket, endpoint or "the AWS SDK's endpoint", "")
        try:
            self.client: Any = _make_client(endpoint, region, profile, patience)
        except SDK_ERRORS as error:
            raise translate(error, request) from None
        self._endpoint = str(self.client.meta.endpoint_url)

    def call(self, name: str, action: Callable[[], _T], *, writes: bool = False) -> _T:
        """``action`` with bounded repetition, and its failures in our own words.

        What ``writes`` is repeated only where nothing was done: ``translate`` knows. Raises
        ``Interrupted``, too, where that was raised in here, as a signal does.
        """
        fault: StoreError
        begun_s = self.clock.monotonic_s()
        for attempt in range(self.patience.attempts):
            if attempt:
                if self.clock.monotonic_s() - begun_s > self.patience.total_s:
                    break
                self.clock.sleep(min(8.0, 0.25 * 2 ** (attempt - 1)) * (1 - self._chance() / 2))
            try:
                return action()
            except SDK_ERRORS as error:
                if (ended := interruption(error)) is not None:
                    raise ended from None
                fault = translate(error, self.request(name, writes=writes))
            except StoreUnreachable as error:
                fault = error
            if not fault.retryable or isinstance(fault, OutcomeUnknown):
                break
        raise fault

    def at(self, name: str, version: str | None = None) -> dict[str, str]:
        """The arguments that name an object, or one of its versions."""
        named = {"Bucket": self.address.bucket, "Key": self.key(name)}
        return named if version is None else {**named, "VersionId": version}

    def request(self, name: str, *, writes: bool = False) -> Request:
        return Request(self.address.bucket, self._endpoint, name, writes)

    def key(self, name: str) -> str:
        return f"{self.address.prefix}/{name}" if self.address.prefix else name

    def own_name(self, prefix: str, key: str) -> str:
        """What we call the object ``key``, which must be one that was asked for."""
        if not key.startswith(self.key(prefix)):
            raise ObjectDamaged(f"{self.address} lists names that were not asked for")
        return key[len(self.key("")) :]

    def info(self, name: str, size_bytes: object, modified: object) -> base.ObjectInfo:
        if not isinstance(size_bytes, int) or size_bytes < 0:
            raise ObjectDamaged(f"{self.address} gives no size for {name}")
        return base.ObjectInfo(name, size_bytes, self.time(name, modified))

    def time(self, name: str, moment: object) -> dt.datetime:
        if not isinstance(moment, dt.datetime) or moment.tzinfo is None:
            raise ObjectDamaged(f"{self.address} gives no time for {name}")
        return moment.astimezone(dt.UTC)


def _make_client(
    endpoint: str | None, region: str | None, profile: str | None, patience: Patience
) -> Any:
    session = boto3.session.Session(profile_name=profile)
    region = region or session.region_name or "us-east-1"
    if endpoint is None:
        # The environment or the profile may name one: only the SDK knows the order.
        first = session.client("s3", region_name=region)
        endpoint = str(first.meta.endpoint_url)
        first.close()
    host = urllib.parse.urlsplit(check_endpoint(endpoint)).hostname or ""
    settings: dict[str, Any] = {}
    if _AWS.fullmatch(host) is None:
        # Newer checksums break other services, and many have no virtual hosts of buckets.
        # Payload hashes cost 1.1 cpu-s per GiB: without them where nobody can meddle.
        private = endpoint.startswith("https:") or _is_loopback(host)
        settings = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path", "payload_signing_enabled": not private},
        }
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        max_pool_connections=16,
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        **settings,
    )
    named = endpoint if settings else None
    return session.client("s3", region_name=region, endpoint_url=named, config=config)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
