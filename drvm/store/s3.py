"""S3-compatible services through boto3. Importing this module costs 0.3 s: do it late.

The SDK's own retries are off. Reads, listings and deletes are repeated here, with jitter. A write
is repeated only where the service said, or the connection shows, that nothing was done: a late
duplicate could bring back what was deleted or decided meanwhile, and the repeated half of a
create-if-absent would lose against its own first half.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import ipaddress
import random
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import ObjectMissing, OutcomeUnknown, StoreError, StoreUnreachable
from drvm.core.units import KIB, MIB
from drvm.store import base
from drvm.store.s3_errors import SDK_ERRORS, RangeOutside, Request, in_doubt, translate
from drvm.store.stream import ByteStream
from drvm.store.urls import S3Address, check_endpoint

MAX_LISTED = 10_000_000

# Restores ask for at most 4 MiB at a time: one allocation, 0.8 cpu-s per GiB instead of 2.1.
_READ_BYTES = 4 * MIB
# Longer bodies go out as a stream of 16 KiB pieces: bytes as a whole would have to be out within
# the time for connecting (urllib3 sends them by one sendall).
_SEND_BYTES = 256 * KIB
_SLOWEST_BYTES_S = 16 * KIB
_AWS = re.compile(r"(?:.+\.)?amazonaws\.com(?:\.cn)?", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one call may try.

    ``connect_s`` also bounds the sending of each 16 KiB, ``read_s`` each wait for an answer.
    ``attempts`` are waited for 0.25, 0.5, 1, ... up to 8 s, less up to a half by chance.
    """

    connect_s: float = 10.0
    read_s: float = 60.0
    attempts: int = 5


class S3Store:
    """Keeps the contract of ``Store`` in ``bucket`` under ``prefix``.

    ``endpoint`` and ``region`` where they are ``None``, and the credentials, come from the AWS
    chain (environment, profile, instance). Nothing is asked of the service here.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._address = S3Address(bucket, prefix)
        self._patience = patience or Patience()
        self._clock = clock or SystemClock()
        self._chance = chance
        request = Request(bucket, endpoint or "the AWS SDK's endpoint", "")
        try:
            self._client: Any = _make_client(endpoint, region, self._patience)
        except SDK_ERRORS as error:
            raise translate(error, request) from None
        self._endpoint = str(self._client.meta.endpoint_url)

    @property
    def location(self) -> str:
        return str(self._address)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        base.check_name(name)
        base.check_range(offset, length)
        if offset == 0 and length is None:
            return self._call(name, lambda: self._get_range(name, None, lambda size: (0, size)))[0]
        if length == 0:  # HTTP has no empty ranges
            size_bytes = self.head(name).size_bytes
            if offset > size_bytes:
                raise base.past_the_end(name, offset, length, size_bytes)
            return b""

        def wanted(size_bytes: int) -> tuple[int, int]:
            end = size_bytes if length is None else min(offset + length, size_bytes)
            return offset, end

        last = "" if length is None else str(offset + length - 1)
        header = f"bytes={offset}-{last}"
        try:
            data, size_bytes = self._call(name, lambda: self._get_range(name, header, wanted))
        except RangeOutside:
            size_bytes = self.head(name).size_bytes
            if length is None and offset == size_bytes:
                return b""
            raise base.past_the_end(name, offset, length, size_bytes) from None
        if offset > size_bytes or (length is not None and len(data) != length):
            raise base.past_the_end(name, offset, length, size_bytes)
        return data

    def get_tail(self, name: str, length: int) -> bytes:
        base.check_name(name)
        base.check_range(0, length)
        if length == 0:
            self.head(name)
            return b""

        def wanted(size_bytes: int) -> tuple[int, int]:
            return max(0, size_bytes - length), size_bytes

        try:
            return self._call(name, lambda: self._get_range(name, f"bytes=-{length}", wanted))[0]
        except RangeOutside:
            if self.head(name).size_bytes:
                raise
            return b""

    def head(self, name: str) -> base.ObjectInfo:
        base.check_name(name)
        try:
            answer = self._call(name, lambda: self._client.head_object(**self._object(name)))
        except ObjectMissing:
            # Only the answer to a GET tells a missing object from a missing bucket.
            with contextlib.suppress(RangeOutside):
                self._call(name, lambda: self._get_range(name, "bytes=0-0", lambda _: (0, 1)))
            raise
        return self._info(name, answer.get("ContentLength"), answer.get("LastModified"))

    def put(self, name: str, data: base.Buffer) -> None:
        self._put(name, data, {})

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._put(name, data, {"IfNoneMatch": "*"})

    def delete(self, name: str) -> None:
        base.check_name(name)
        with contextlib.suppress(ObjectMissing):
            self._call(name, lambda: self._client.delete_object(**self._object(name)))

    def close(self) -> None:
        self._client.close()

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        # All pages first: SeaweedFS orders "a/x" before "a-b", and a page that is sent twice
        # must not yield a name twice.
        base.check_prefix(prefix)
        found: dict[str, base.ObjectInfo] = {}
        token: dict[str, str] = {}
        while True:
            page = self._call(prefix, functools.partial(self._list_page, prefix, token))
            for entry in page.get("Contents", ()):
                name = self._own_name(prefix, str(entry.get("Key", "")))
                if base.is_name(name):
                    found[name] = self._info(name, entry.get("Size"), entry.get("LastModified"))
            if len(found) > MAX_LISTED:
                raise StoreError(f"{self.location} lists more than {MAX_LISTED} objects")
            if not page["IsTruncated"]:
                return iter([found[name] for name in sorted(found)])
            following = {"ContinuationToken": str(page.get("NextContinuationToken") or "")}
            if following == token or not following["ContinuationToken"]:
                raise StoreUnreachable(f"{self.location}: the listing does not go on after a page")
            token = following

    # -- single requests ----------------------------------------------------------------------
    def _get_range(
        self, name: str, header: str | None, wanted: Callable[[int], tuple[int, int]]
    ) -> tuple[bytes, int]:
        """What ``wanted`` says of the object's size (start and end), and that size in bytes."""
        ranged = {"Range": header} if header else {}
        answer = self._client.get_object(**self._object(name), **ranged)
        data = self._read_body(name, answer)
        if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # the service ignores ranges
            start, end = wanted(len(data))
            return data[start:end], len(data)
        match = _CONTENT_RANGE.fullmatch(str(answer.get("ContentRange", "")))
        if match is None:
            raise in_doubt(self._request(name), "a part without Content-Range")
        start, last, size_bytes = int(match[1]), int(match[2]), int(match[3])
        if (start, last + 1) != wanted(size_bytes) or len(data) != last + 1 - start:
            raise in_doubt(self._request(name), f"asked for {header}, got {match[0]}")
        return data, size_bytes

    def _read_body(self, name: str, answer: Any) -> bytes:
        """The whole body, at a bearable speed.

        The SDK compares its length with the one declared when it is read to the end.
        """
        declared = answer.get("ContentLength")
        body = answer["Body"]
        parts = []
        size_bytes = 0
        try:
            base.check_size(name, declared or 0)
            limit_s = (declared or base.MAX_OBJECT_BYTES) / _SLOWEST_BYTES_S
            deadline_s = self._clock.monotonic_s() + limit_s + self._patience.read_s
            while part := body.read(_READ_BYTES):
                parts.append(part)
                size_bytes += len(part)
                base.check_size(name, size_bytes)
                if self._clock.monotonic_s() > deadline_s:
                    raise in_doubt(self._request(name), f"only {size_bytes} bytes in {limit_s} s")
        finally:
            body.close()
        return b"".join(parts)

    def _put(self, name: str, data: base.Buffer, condition: dict[str, str]) -> None:
        base.check_size(base.check_name(name), len(data))

        def send() -> None:
            body = ByteStream(data) if len(data) > _SEND_BYTES else bytes(data)
            answer = self._client.put_object(**self._object(name), Body=body, **condition)
            if not answer.get("ETag"):
                raise in_doubt(self._request(name, writes=True), "no S3 answer: it has no ETag")

        self._call(name, send, writes=True)

    def _list_page(self, prefix: str, token: dict[str, str]) -> Any:
        page = self._client.list_objects_v2(
            Bucket=self._address.bucket, Prefix=self._key(prefix), **token
        )
        if not isinstance(page.get("IsTruncated"), bool):
            raise in_doubt(self._request(prefix), "not a listing")  # such as an empty 200
        return page

    def _call(self, name: str, action: Callable[[], _T], *, writes: bool = False) -> _T:
        """``action`` with bounded repetition, and its failures in our own words."""
        fault: StoreError
        for attempt in range(self._patience.attempts):
            if attempt:
                self._clock.sleep(min(8.0, 0.25 * 2 ** (attempt - 1)) * (1 - self._chance() / 2))
            try:
                return action()
            except SDK_ERRORS as error:
                fault = translate(error, self._request(name, writes=writes))
            except StoreUnreachable as error:
                fault = error
            if not fault.retryable or isinstance(fault, OutcomeUnknown):
                break
        raise fault

    # -- names --------------------------------------------------------------------------------
    def _key(self, name: str) -> str:
        return f"{self._address.prefix}/{name}" if self._address.prefix else name

    def _own_name(self, prefix: str, key: str) -> str:
        """What we call the object ``key``, which must be one that was asked for."""
        if not key.startswith(self._key(prefix)):
            raise StoreError(f"{self.location} lists names that were not asked for")
        return key[len(self._key("")) :]

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._address.bucket, "Key": self._key(name)}

    def _request(self, name: str, *, writes: bool = False) -> Request:
        return Request(self._address.bucket, self._endpoint, name, writes)

    def _info(self, name: str, size_bytes: object, modified: object) -> base.ObjectInfo:
        if (
            not isinstance(size_bytes, int)
            or size_bytes < 0
            or not isinstance(modified, dt.datetime)
            or modified.tzinfo is None
        ):
            raise StoreError(f"{self.location} gives no size or no time for {name}")
        return base.ObjectInfo(name, size_bytes, modified.astimezone(dt.UTC))


def _make_client(endpoint: str | None, region: str | None, patience: Patience) -> Any:
    session = boto3.session.Session()
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
