"""Somebody who holds the keys of a writing host: those of the store, and of the repository."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from botocore.exceptions import ClientError

from drvm.repository.layout import FINALS, POINTS
from drvm.repository.points import Final
from drvm.repository.repository import Repository


def lie(repository: Repository, name: str) -> bytes:
    """A well sealed final that says ``aborted``, an empty manifest, or noise."""
    if name.startswith(FINALS):
        final = msgspec.json.encode(Final("aborted", "0" * 64))
        return repository._sealer.seal_object(b"final", name, final)
    return b"" if name.startswith(POINTS) else b"noise"


def ravage(
    repository: Repository | None,
    s3: Any,
    bucket: str,
    prefix: str,
    *,
    overwrite: bool = True,
    for_ever: bool = True,
) -> Counter[str]:
    """Overwrite and delete everything below ``prefix``; how many objects there were, and how often
    what was refused."""
    counts: Counter[str] = Counter()
    versions = s3.list_object_versions(Bucket=bucket, Prefix=prefix)["Versions"]
    for first in {entry["Key"]: entry for entry in versions}.values():
        named = {"Bucket": bucket, "Key": first["Key"]}
        counts["objects"] += 1
        if overwrite and repository is not None:
            s3.put_object(**named, Body=lie(repository, first["Key"].removeprefix(prefix)))
        attempts = {"delete": named}
        if for_ever:
            attempts["delete for ever"] = {
                **named,
                "VersionId": first["VersionId"],
                "BypassGovernanceRetention": True,
            }
        for what, arguments in attempts.items():
            try:
                s3.delete_object(**arguments)
            except ClientError as error:
                assert error.response["Error"]["Code"] == "AccessDenied"
                counts[what] += 1
    return counts
