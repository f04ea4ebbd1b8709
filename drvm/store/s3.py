"""S3-compatible services through boto3. Importing this module costs 0.3 s: do it late.

The SDK's own retries are off. Reads, listings and deletes are repeated here, with jitter. A write
is repeated only where the service said, or the connection shows, that nothing was done: a late
duplicate could bring back what was deleted or decided meanwhile, and the repeated half of a
create-if-absent would lose against its own first half.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import io
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from drvm.core.pace import Bandwidth
from drvm.core.units import KIB, MIB
from drvm.store import base
from drvm.store.history import LockRule
from drvm.store.s3_client import SLOWEST_BYTES_S, Bucket, Patience
from drvm.store.s3_errors import RangeOutside, in_doubt
from drvm.store.s3_trials import S3Trials
from drvm.store.s3_versions import S3History
from drvm.store.stream import ByteStream
from drvm.store.urls import S3Address

MAX_LISTED = 10_000_000

# A piece that the processor's cache holds on its way to its place in the answer.
_READ_BYTES = MIB
# With a limited bandwidth, so that one thread does not make the others wait long.
_SLOW_READ_BYTES = 256 * KIB
# Longer bodies go out as a stream of 16 KiB pieces: bytes as a whole would have to be out within
# the time for connecting (urllib3 sends them by one sendall).
_SEND_BYTES = 256 * KIB
TOO_SLOW = f"at less than {SLOWEST_BYTES_S // KIB} KiB/s"
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


class S3Store:
    """Keeps the contract of ``VersionedStore`` in ``bucket`` under ``prefix``.

    ``endpoint`` and ``region`` where they are ``None``, and the credentials, come from the AWS
    chain (environment, profile, instance), or from ``profile`` alone. Nothing is asked of the
    service here. ``limits`` may be shared with other stores; ``lock`` needs a bucket with Object
    Lock.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        limits: Bandwidth | None = None,
        lock: LockRule | None = None,
    ) -> None:
        self._bucket = Bucket(
            S3Address(bucket, prefix),
            endpoint=endpoint,
            region=region,
            profile=profile,
            patience=patience or Patience(),
            clock=clock or SystemClock(),
            chance=chance,
        )
        self._client = self._bucket.client
        self._limits = limits or Bandwidth.of(0, 0, self._bucket.clock)
        self._lock = lock
        self._history = S3History(self._bucket)
        self._trials = S3Trials(self._bucket)

    @property
    def location(self) -> str:
        return str(self._bucket.address)

    @property
    def history(self) -> S3History:
        return self._history

    @property
    def trials(self) -> S3Trials:
        return self._trials

    def get(
        self,
        name: str,
        *,
        offset: int = 0,
        length: int | None = None,
        version: str | None = None,
    ) -> bytes:
        base.check_name(name)
        base.check_range(offset, length)
        if offset == 0 and length is None:
            return self._get(name, version, None, lambda size_bytes: (0, size_bytes))[0]
        if length == 0:  # HTTP has no empty ranges
            size_bytes = self._size(name, version)
            if offset > size_bytes:
                raise base.past_the_end(name, offset, length, size_bytes)
            return b""

        def wanted(size_bytes: int) -> tuple[int, int]:
            end = size_bytes if length is None else min(offset + length, size_bytes)
            return offset, end

        last = "" if length is None else str(offset + length - 1)
        try:
            data, size_bytes = self._get(name, version, f"bytes={offset}-{last}", wanted)
        except RangeOutside:
            size_bytes = self._size(name, version)
            if length is None and offset == size_bytes:
                return b""
            raise base.past_the_end(name, offset, length, size_bytes) from None
        if offset > size_bytes or (length is not None and len(data) != length):
            raise base.past_the_end(name, offset, length, size_bytes)
        return data

    def get_tail(self, name: str, length: int, *, version: str | None = None) -> bytes:
        base.check_name(name)
        base.check_range(0, length)
        if length == 0:
            self._size(name, version)
            return b""

        def wanted(size_bytes: int) -> tuple[int, int]:
            return max(0, size_bytes - length), size_bytes

        try:
            return self._get(name, version, f"bytes=-{length}", wanted)[0]
        except RangeOutside:
            if self._size(name, version):
                raise
            return b""

    def head(self, name: str) -> base.ObjectInfo:
        return self._head(base.check_name(name), None)

    def put(self, name: str, data: base.Buffer) -> None:
        self._put(name, data, {})

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._put(name, data, {"IfNoneMatch": "*"})

    def delete(self, name: str) -> None:
        named = self._bucket.at(base.check_name(name))
        with contextlib.suppress(ObjectMissing):
            self._bucket.call(name, lambda: self._client.delete_object(**named))

    def close(self) -> None:
        self._client.close()

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        # All pages first: SeaweedFS orders "a/x" before "a-b", and a page that is sent twice
        # must not yield a name twice.
        base.check_prefix(prefix)
        found: dict[str, base.ObjectInfo] = {}
        token: dict[str, str] = {}
        while True:
            page = self._bucket.call(prefix, functools.partial(self._list_page, prefix, token))
            for entry in page.get("Contents", ()):
                name = self._bucket.own_name(prefix, str(entry.get("Key", "")))
                if base.is_name(name):
                    size_bytes, modified = entry.get("Size"), entry.get("LastModified")
                    found[name] = self._bucket.info(name, size_bytes, modified)
            if len(found) > MAX_LISTED:
                raise ObjectDamaged(f"{self.location} lists more than {MAX_LISTED} objects")
            if not page["IsTruncated"]:
                return iter([found[name] for name in sorted(found)])
            following = {"ContinuationToken": str(page.get("NextContinuationToken") or "")}
            if following == token or not following["ContinuationToken"]:
                raise StoreUnreachable(f"{self.location}: the listing does not go on after a page")
            token = following

    # -- requests -----------------------------------------------------------------------------
    def _get(
        self,
        name: str,
        version: str | None,
        header: str | None,
        wanted: Callable[[int], tuple[int, int]],
    ) -> tuple[bytes, int]:
        """What ``wanted`` says of the object's size (start and end), and that size in bytes."""
        named = self._bucket.at(name, version) | ({"Range": header} if header else {})

        def ask() -> tuple[bytes, int]:
            answer = self._client.get_object(**named)
            data = self._read_body(name, answer)
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # the service ignores ranges
                start, end = wanted(len(data))
                return data[start:end], len(data)
            match = _CONTENT_RANGE.fullmatch(str(answer.get("ContentRange", "")))
            if match is None:
                raise in_doubt(self._bucket.request(name), "a part without Content-Range")
            start, last, size_bytes = int(match[1]), int(match[2]), int(match[3])
            if (start, last + 1) != wanted(size_bytes) or len(data) != last + 1 - start:
                raise in_doubt(self._bucket.request(name), f"asked for {header}, got {match[0]}")
            return data, size_bytes

        return self._bucket.call(name, ask)

    def _read_body(self, name: str, answer: Any) -> bytes:
        """The whole body, at a bearable speed.

        The SDK compares its length with the one declared when it is read to the end.
        """
        declared = answer.get("ContentLength")
        body = answer["Body"]
        pace = self._limits.download
        piece_bytes = _SLOW_READ_BYTES if pace.limited else _READ_BYTES
        try:
            base.check_size(name, declared or 0)
            # as long as it will be: nothing moves, and the answer is in memory once
            read = io.BytesIO(bytes(declared or 0))
            deadline = self._deadline(declared or base.MAX_OBJECT_BYTES)
            while part := body.read(piece_bytes):
                read.write(part)
                base.check_size(name, read.tell())
                if deadline.over(pace.wait(len(part))):
                    raise in_doubt(
                        self._bucket.request(name), f"only {read.tell()} bytes {TOO_SLOW}"
                    )
        finally:
            body.close()
        read.truncate()
        return read.getvalue()

    def _put(self, name: str, data: base.Buffer, condition: dict[str, str]) -> None:
        base.check_size(base.check_name(name), len(data))
        arguments: dict[str, Any] = self._bucket.at(name) | condition | self._locked(name, data)

        def send() -> None:
            deadline = self._deadline(len(data))

            def gate(length: int) -> None:
                if deadline.over(self._limits.upload.wait(length)):
                    raise TimeoutError(errno.ETIMEDOUT, TOO_SLOW)

            body: Any = ByteStream(data, gate)
            if len(data) <= _SEND_BYTES:
                self._limits.upload.wait(len(data))
                body = bytes(data)
            answer = self._client.put_object(**arguments, Body=body)
            if not answer.get("ETag"):
                request = self._bucket.request(name, writes=True)
                raise in_doubt(request, "no S3 answer: it has no ETag")

        self._bucket.call(name, send, writes=True)

    def _locked(self, name: str, data: base.Buffer) -> dict[str, Any]:
        """The arguments that lock a new object. S3 takes them only with a checksum of the body."""
        if self._lock is None or not self._lock.covers(name):
            return {}
        checksum = hashlib.md5(data, usedforsecurity=False).digest()
        return {
            "ContentMD5": base64.b64encode(checksum).decode(),
            "ObjectLockMode": self._lock.mode.upper(),
            "ObjectLockRetainUntilDate": self._lock.until(self._bucket.clock.now()),
        }

    def _head(self, name: str, version: str | None) -> base.ObjectInfo:
        named = self._bucket.at(name, version)
        try:
            answer = self._bucket.call(name, lambda: self._client.head_object(**named))
        except ObjectMissing:
            # Only the answer to a GET tells a missing object from a missing bucket.
            with contextlib.suppress(RangeOutside):
                self._get(name, version, "bytes=0-0", lambda _: (0, 1))
            raise
        return self._bucket.info(name, answer.get("ContentLength"), answer.get("LastModified"))

    def _size(self, name: str, version: str | None) -> int:
        return self._head(name, version).size_bytes

    def _list_page(self, prefix: str, token: dict[str, str]) -> Any:
        page = self._client.list_objects_v2(
            Bucket=self._bucket.address.bucket, Prefix=self._bucket.key(prefix), **token
        )
        if not isinstance(page.get("IsTruncated"), bool):
            raise in_doubt(self._bucket.request(prefix), "not a listing")  # such as an empty 200
        return page

    def _deadline(self, size_bytes: int) -> _Deadline:
        limit_s = size_bytes / SLOWEST_BYTES_S + self._bucket.patience.read_s
        return _Deadline(self._bucket.clock, limit_s)


class _Deadline:
    """Of a body's way; what its pace makes it wait does not count."""

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock = clock
        self._end_s = clock.monotonic_s() + limit_s

    def over(self, waited_s: float) -> bool:
        self._end_s += waited_s
        return self._clock.monotonic_s() > self._end_s
