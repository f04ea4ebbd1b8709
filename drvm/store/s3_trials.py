"""What a probe tries of an S3 service below the level of whole requests."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib

from botocore.exceptions import ClientError

from drvm.store import base
from drvm.store.s3_client import Bucket
from drvm.store.s3_errors import SDK_ERRORS, translate
from drvm.store.stream import ByteStream


class S3Trials:
    """Implements ``Trials``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put_cut(self, name: str, data: bytes) -> None:
        left = len(data) // 2

        def gate(length: int) -> None:
            nonlocal left
            if left < length:
                raise TimeoutError(errno.ETIMEDOUT, "cut on purpose")
            left -= length

        named = self._bucket.at(base.check_name(name))
        with contextlib.suppress(*SDK_ERRORS):
            self._bucket.client.put_object(**named, Body=ByteStream(data, gate))

    def put_wrong(self, name: str, data: bytes) -> bool:
        checksum = hashlib.md5(b"other " + data, usedforsecurity=False).digest()
        named = self._bucket.at(base.check_name(name))
        try:
            self._bucket.client.put_object(
                **named, Body=data, ContentMD5=base64.b64encode(checksum).decode()
            )
        except SDK_ERRORS as error:
            if isinstance(error, ClientError) and _status(error) == 400:
                return False
            raise translate(error, self._bucket.request(name, writes=True)) from None
        return True


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
