"""Where a repository lies, as people write it, and the store behind it.

::

    s3://bucket/prefix      the endpoint is set apart: config, or AWS_ENDPOINT_URL
    file:///path            percent-encoded where it needs to be
"""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import UsageError
from drvm.core.pace import Bandwidth
from drvm.store.base import Store, is_name
from drvm.store.history import LockRule

MAX_PREFIX_LENGTH = 256

_FORMS = "a repository is s3://bucket/prefix or file:///absolute/path"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class S3Address:
    """``prefix`` has no slash at either end and may be empty."""

    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


@dataclass(frozen=True, slots=True)
class DirectoryAddress:
    """``path`` is absolute and has no ``..``."""

    path: Path

    def __str__(self) -> str:
        return self.path.as_uri()


StoreAddress = S3Address | DirectoryAddress


def parse_address(text: str) -> StoreAddress:
    """Raises ``UsageError``; its message never repeats what may be a password."""
    scheme, found, rest = text.partition("://")
    if not found:
        hint = f"{_FORMS}; perhaps file://{text}" if text.startswith("/") else _FORMS
        raise UsageError("the repository's URL has no scheme", hint=hint)
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in rest):
        raise UsageError("the repository's URL holds control characters", hint=_FORMS)
    if scheme == "s3":
        return _parse_s3(rest)
    if scheme == "file":
        return _parse_file(rest)
    raise UsageError(f"no store is called {scheme[:20]!r}", hint=_FORMS)


def _parse_s3(rest: str) -> S3Address:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            "an s3 URL holds the bucket and the prefix only",
            hint="credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a "
            "profile, the endpoint from the config or AWS_ENDPOINT_URL",
        )
    if _BUCKET.fullmatch(bucket) is None or ".." in bucket:
        raise UsageError(f"{bucket[:80]!r} is not the name of a bucket", hint=_FORMS)
    if prefix and (not is_name(prefix) or len(prefix) > MAX_PREFIX_LENGTH):
        raise UsageError(
            f"{prefix[:80]!r} can't be a prefix",
            hint="letters, digits, '.', '_' and '-', in parts divided by single slashes, "
            f"at most {MAX_PREFIX_LENGTH} in all",
        )
    return S3Address(bucket, prefix)


def _parse_file(rest: str) -> DirectoryAddress:
    if not rest.startswith("/"):
        raise UsageError(
            "a file URL needs an absolute path",
            hint=f"{_FORMS}: three slashes, as in file:///srv/drvm",
        )
    if "?" in rest or "#" in rest or _BAD_ESCAPE.search(rest):
        raise UsageError(
            "the file URL holds '?', '#' or a lone '%'",
            hint="write them as %3F, %23 and %25",
        )
    path = os.fsdecode(urllib.parse.unquote_to_bytes(rest))
    if "\0" in path or ".." in path.split("/"):
        raise UsageError("the path may not hold '..' or a null byte", hint=_FORMS)
    return DirectoryAddress(Path("/" + path.lstrip("/")))


def check_endpoint(endpoint: str) -> str:
    """``endpoint`` itself if it is a plain http or https URL; else ``UsageError``."""
    hint = "an endpoint is a URL such as https://s3.example.org or http://127.0.0.1:9000"
    try:
        parts = urllib.parse.urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError("the S3 endpoint is not a URL", hint=hint)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError("the S3 endpoint holds more than scheme, host, port and path", hint=hint)
    return endpoint


def open_store(
    address: StoreAddress,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    create: bool = False,
    clock: Clock | None = None,
    limits: Bandwidth | None = None,
    lock: LockRule | None = None,
) -> Store:
    """The store behind ``address``; the caller closes it. ``limits`` and ``lock`` are for buckets.

    ``create`` makes the directory of a ``file:`` address; buckets are made by their owner. A
    bucket is not looked for here: the first call says what is wrong.
    """
    if isinstance(address, DirectoryAddress):
        from drvm.store.directory import DirectoryStore

        return DirectoryStore.create(address.path) if create else DirectoryStore(address.path)
    from drvm.store.s3 import S3Store  # boto3 takes 0.3 s to import

    return S3Store(
        address.bucket,
        address.prefix,
        endpoint=endpoint,
        region=region,
        profile=profile,
        clock=clock,
        limits=limits,
        lock=lock,
    )
