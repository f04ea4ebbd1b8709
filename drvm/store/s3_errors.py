"""What the answers and failures of an S3 service mean.

Texts of the server never reach a message: they may repeat what was sent. Its error codes do.
The codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and
of MinIO, Ceph and SeaweedFS where they have their own.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from drvm.core.errors import (
    Interrupted,
    ObjectDamaged,
    ObjectExists,
    ObjectMissing,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)

SDK_ERRORS = (
    sdk.BotoCoreError,
    sdk.ClientError,
    ResponseParserError,
    HTTPError,
    RecursionError,
)
"""All that the SDK raises; urllib3's own come through while a body is read, and where everything
is redirected, also the question of where to, the SDK asks until its stack is full."""

_NO_ANSWER = (
    sdk.HTTPClientError,
    sdk.IncompleteReadError,
    sdk.FlexibleChecksumError,
    ResponseParserError,
    HTTPError,
)

_MAX_CONTEXTS = 20
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)
_CREDENTIALS = (
    "credentials are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the profile "
    "AWS_PROFILE of ~/.aws/credentials and ~/.aws/config, and in the instance's own role"
)
_ENDPOINT = "check the endpoint (config, or AWS_ENDPOINT_URL) and the network"
_REGION = "set the bucket's own region in the config, or AWS_REGION"

# The store did nothing, and the same request may succeed in a moment.
_NOT_NOW = {
    "SlowDown",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    # what arrived was not what was sent
    "RequestTimeout",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge"}
_REFUSED = {
    "NoSuchBucket": ("there is no such bucket", "create it, or correct the repository's URL"),
    "AllAccessDisabled": ("the bucket is closed", "ask who owns the account"),
    "AccessDenied": (
        "access denied",
        "the identity must be allowed to get, put and list (collecting also to delete); "
        + _CREDENTIALS,
    ),
    "InvalidAccessKeyId": ("the access key is unknown", _CREDENTIALS),
    "SignatureDoesNotMatch": ("the secret key is wrong", _CREDENTIALS),
    "ExpiredToken": ("the credentials have expired", "renew them; " + _CREDENTIALS),
    "InvalidToken": ("the session token is not valid", "renew it; " + _CREDENTIALS),
    "RequestTimeTooSkewed": ("this host's clock differs too much", "set the clock, by NTP"),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "AuthorizationHeaderMalformed": ("the region is wrong", _REGION),
    "NotImplemented": (
        "the service lacks something that drvm needs",
        "drvm doctor names it; without conditional writes there may be one writing host only",
    ),
}
_REFUSED_STATUS = {
    301: _REFUSED["PermanentRedirect"],
    401: _REFUSED["AccessDenied"],
    403: _REFUSED["AccessDenied"],
    501: _REFUSED["NotImplemented"],
}


class RangeOutside(ObjectDamaged):
    """HTTP 416: the range begins at or behind the end. Does not leave the room."""


def interruption(error: BaseException) -> Interrupted | None:
    """What ``error`` has taken the place of: the SDK takes every exception in the middle of a
    request for a fault of the connection, also the one that a signal raises there."""
    found: BaseException | None = error
    for _ in range(_MAX_CONTEXTS):
        if found is None or isinstance(found, Interrupted):
            return found
        found = found.__context__
    return None


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, for messages and for what a lost answer means.

    ``name`` may be a prefix. ``writes`` for requests that must not be sent twice.
    """

    bucket: str
    endpoint: str
    name: str
    writes: bool = False

    def __str__(self) -> str:
        what = f" ({self.name})" if self.name else ""
        return f"bucket {self.bucket} at {self.endpoint}{what}"


def translate(error: Exception, request: Request) -> StoreError:
    """The error to raise for one of ``SDK_ERRORS``.

    ``StoreUnreachable`` itself means that the request may be sent again; ``OutcomeUnknown`` that
    it may not.
    """
    if isinstance(error, sdk.ClientError):
        return _from_answer(error, request)
    if isinstance(error, sdk.SSLError):
        return _from_tls(error, request)
    if isinstance(error, sdk.ConnectionError):
        # Includes time-outs of connecting: nothing has been sent.
        return StoreUnreachable(f"no connection to {request}: {_reason(error)}", hint=_ENDPOINT)
    if isinstance(error, _NO_ANSWER):
        return in_doubt(request, _reason(error))
    if isinstance(error, _NO_CREDENTIALS):
        return StoreRefused(f"no usable credentials for {request}", hint=_CREDENTIALS)
    # What is left says that the SDK itself is set up wrongly (profile, region, endpoint).
    return StoreRefused(
        f"the AWS SDK can't ask {request}: {type(error).__name__}",
        hint=f"check the profile, region and endpoint; {_CREDENTIALS}",
    )


def in_doubt(request: Request, reason: str) -> StoreUnreachable:
    """The answer was lost, or is none."""
    if request.writes:
        return OutcomeUnknown(
            f"the answer to a write was lost, {request}: {reason}",
            hint="the object may exist or not; drvm reads it back or takes a new name",
        )
    return StoreUnreachable(f"no usable answer from {request}: {reason}", hint=_ENDPOINT)


_NO_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.NoAuthTokenError,
    sdk.TokenRetrievalError,
    sdk.ProfileNotFound,
)


def _from_answer(error: sdk.ClientError, request: Request) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if _CODE.fullmatch(code) is None:
        code = str(status)
    # An answer to HEAD has no body, so no code either.
    if code in ("NoSuchKey", "NoSuchVersion") or (
        status == 404 and error.operation_name == "HeadObject"
    ):
        return ObjectMissing(f"there is no {request.name} in bucket {request.bucket}")
    if status == 412:
        return ObjectExists(f"{request.name} exists already in bucket {request.bucket}")
    if status == 416:
        return RangeOutside(f"{request.name} ends before the range that was asked for")
    if status in (409, 429) or code in _NOT_NOW:
        return StoreUnreachable(
            f"{request} says try again later ({code})", hint="if it goes on, ask who runs the store"
        )
    if status == 507 or code in _FULL:
        return StoreRefused(
            f"{request} is full ({code})", hint="raise the quota, or prune old points"
        )
    if code in _REFUSED or status in _REFUSED_STATUS:
        what, hint = _REFUSED.get(code) or _REFUSED_STATUS[status]
        return StoreRefused(f"{what}: {request} ({code})", hint=hint)
    if status >= 500:
        return in_doubt(request, f"HTTP {status} {code}")
    return StoreRefused(
        f"{request} refused: HTTP {status} {code}",
        hint="is it an S3 service? " + _ENDPOINT,
    )


def _from_tls(error: sdk.SSLError, request: Request) -> StoreError:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreRefused(
                f"the certificate is not trusted: {request}: {cause.verify_message}",
                hint="AWS_CA_BUNDLE names the file of a certificate authority of your own",
            )
    return in_doubt(request, "TLS failed: " + _reason(error))


def _causes(error: BaseException) -> list[BaseException]:
    """What led to ``error``, the nearest first; the SDK keeps it in its arguments."""
    found: list[BaseException] = []
    following: object = error
    while isinstance(following, BaseException) and len(found) < 10:
        found.append(following)
        kept = getattr(following, "kwargs", {}).get("error") or getattr(following, "reason", None)
        if not isinstance(kept, BaseException):
            kept = next((arg for arg in following.args if isinstance(arg, BaseException)), None)
        following = kept or following.__cause__ or following.__context__
    return found


def _reason(error: BaseException) -> str:
    """The system's own words where there are any: connection refused, name not known."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return type(error).__name__
