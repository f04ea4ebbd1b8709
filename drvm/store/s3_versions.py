"""Versions and locks of the objects of an S3 bucket."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from drvm.core.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from drvm.store import base
from drvm.store.history import LockMode, Version, Versioning
from drvm.store.s3_client import Bucket
from drvm.store.s3_errors import in_doubt

MAX_LISTED = 10_000_000
_VERSIONS = ".versions"
_Found = list[Version]

# Services differ in how they say that there is no lock on an object, or none in its bucket.
_NO_LOCK = {
    "NoSuchObjectLockConfiguration",
    "ObjectLockConfigurationNotFoundError",
    "InvalidRequest",
    "NotImplemented",
}
_UNVERSIONED: dict[str, Versioning] = {
    "AccessDenied": "unknown",
    "NotImplemented": "none",
    "MethodNotAllowed": "none",
}


class S3History:
    """Implements ``History``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._client = bucket.client

    def versioning(self) -> Versioning:
        def ask() -> Versioning:
            try:
                answer = self._client.get_bucket_versioning(Bucket=self._bucket.address.bucket)
            except ClientError as error:
                known = _UNVERSIONED.get(_code(error))
                if known is None:  # such as a bucket that is not there
                    raise
                return known
            # Where no more are made ("Suspended"), those that there were are kept still.
            return "kept" if answer.get("Status") in ("Enabled", "Suspended") else "none"

        return self._bucket.call("", ask)

    def list(self, prefix: str) -> Iterator[Version]:
        base.check_prefix(prefix)
        found: list[Version] = []
        parts = [prefix]
        known = {prefix}
        for part in parts:  # which may become more
            for last in self._pages(prefix, part, found):
                more = [part for part in _passed_over(prefix, last) if part not in known]
                known.update(more)
                parts += more
        return _ordered(found)

    def delete(self, name: str, version: str) -> None:
        named = self._bucket.at(base.check_name(name), version)
        with contextlib.suppress(ObjectMissing):
            self._bucket.call(name, lambda: self._client.delete_object(**named))

    def retained_until(self, name: str, version: str) -> dt.datetime | None:
        named = self._bucket.at(base.check_name(name), version)

        def ask() -> Any:
            try:
                return self._client.get_object_retention(**named).get("Retention", {})
            except ClientError as error:
                if _code(error) in _NO_LOCK:
                    return {}
                raise

        until = self._bucket.call(name, ask).get("RetainUntilDate")
        return None if until is None else self._bucket.time(name, until)

    def retain(self, name: str, version: str, mode: LockMode, until: dt.datetime) -> None:
        named = self._bucket.at(base.check_name(name), version)
        retention = {"Mode": mode.upper(), "RetainUntilDate": until}
        self._bucket.call(
            name, lambda: self._client.put_object_retention(**named, Retention=retention)
        )

    # -- inside -------------------------------------------------------------------------------
    def _pages(self, prefix: str, part: str, found: _Found) -> Iterator[str]:
        """Add all that the service lists of ``part`` to ``found``; the names where pages ended."""
        after: dict[str, str] = {}
        while True:
            page = self._bucket.call(part, functools.partial(self._page, part, after))
            found += self._entries(prefix, part, page)
            if len(found) > MAX_LISTED:
                raise ObjectDamaged(f"{self._bucket.address} lists more than {MAX_LISTED} versions")
            if not page["IsTruncated"]:
                return
            following = {"KeyMarker": str(page.get("NextKeyMarker") or "")}
            if page.get("NextVersionIdMarker"):
                following["VersionIdMarker"] = str(page["NextVersionIdMarker"])
            if following == after or not following["KeyMarker"]:
                raise StoreUnreachable(
                    f"{self._bucket.address}: the listing of versions does not go on after a page"
                )
            after = following
            yield after["KeyMarker"].removeprefix(self._bucket.key(""))

    def _page(self, prefix: str, after: dict[str, str]) -> Any:
        page = self._client.list_object_versions(
            Bucket=self._bucket.address.bucket, Prefix=self._bucket.key(prefix), **after
        )
        if not isinstance(page.get("IsTruncated"), bool):
            raise in_doubt(self._bucket.request(prefix), "not a listing")
        return page

    def _entries(self, prefix: str, part: str, page: Any) -> Iterator[Version]:
        """What lies below ``prefix``. SeaweedFS shows ``a`` also to who asks for ``a.ver``."""
        for kind in ("Versions", "DeleteMarkers"):
            for entry in page.get(kind, ()):
                key = str(entry.get("Key", ""))
                asked = key.startswith(self._bucket.key(prefix))
                if not asked and f"{key}{_VERSIONS}".startswith(self._bucket.key(part)):
                    continue
                name = self._bucket.own_name(prefix, key)
                if not base.is_name(name):
                    continue
                marker = kind == "DeleteMarkers"
                size = 0 if marker else entry.get("Size")
                info = self._bucket.info(name, size, entry.get("LastModified"))
                etag = "" if marker else str(entry.get("ETag", ""))
                identity = str(entry.get("VersionId", "null"))
                yield Version(name, identity, info.size_bytes, info.modified, etag, marker)


def _passed_over(prefix: str, last: str) -> Iterator[str]:
    """What to ask for beside, where a page of names below ``prefix`` ended with ``last``.

    SeaweedFS goes through the names as its directories have them, where an object ``a`` is called
    ``a.versions`` and stands behind ``a-b`` and ``a/b``, and goes on with what is behind the last
    name by bytes, where it stands before. So whoever may write objects could hide others, such as
    manifests from a collector: ``a``, of which ``last`` is longer, and ``a-c`` and ``a.c`` where it
    lies in ``a/``. An object is shown alone to whoever asks for ``a.versions``."""
    for place, character in enumerate(last):
        if character > "/" or place < len(prefix):
            continue
        begins = last[:place]
        for more in (_VERSIONS, "-", ".") if character == "/" else (_VERSIONS,):
            if base.is_prefix(begins + more):
                yield begins + more


def _ordered(found: list[Version]) -> Iterator[Version]:
    """By name and time; each once, though a page came twice. S3 lists the versions of a name the
    newest first, which tells what came first within a second."""
    found.reverse()
    found.sort(key=lambda version: (version.name, version.modified))
    for _, versions in itertools.groupby(found, lambda version: version.name):
        yield from {version.id: version for version in versions}.values()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
