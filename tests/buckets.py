"""Buckets and identities of a local S3 server, made with the SDK by its administrator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.config import Config

from drvm.lab.services import S3Server
from drvm.store.history import LockRule
from drvm.store.s3 import S3Store


def client(server: S3Server, service: str = "s3") -> Any:
    return boto3.client(
        service,
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def make_locked_bucket(server: S3Server, bucket: str) -> S3Server:
    """It keeps versions and locks."""
    client(server).create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    return replace(server, bucket=bucket)


def make_identity(server: S3Server, name: str, statements: Sequence[dict[str, Any]]) -> S3Server:
    """The same server and bucket, by the keys of a new user with this policy."""
    iam = client(server, "iam")
    iam.create_user(UserName=name)
    policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return replace(server, access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])


@contextmanager
def credentials(server: S3Server) -> Iterator[None]:
    """Those of the environment while the context lasts."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        environment.setenv("AWS_CONFIG_FILE", "/dev/null")
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        yield


def open_bucket(server: S3Server, prefix: str, lock: LockRule | None = None) -> S3Store:
    with credentials(server):
        return S3Store(server.bucket, prefix, endpoint=server.endpoint, lock=lock)
