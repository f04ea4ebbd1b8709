"""Somebody has the writer's keys of the store and of the repository, and does the worst with both.

Shown on a real S3 server with versions and Object Lock, by the identities of docs/S3.md.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from drvm.core.units import MIB
from drvm.lab.services import S3Server
from tests.appliance import Appliance, make_appliance
from tests.buckets import client, credentials, make_identity, make_locked_bucket
from tests.hostile_writer import ravage
from tests.refusals import assert_clear
from tests.s3_policies import statements

pytestmark = pytest.mark.s3

CONFIG = """\
policies:
  - name: all
    vms: ["*"]
    keep_last: 1
"""
LOCK = "  object_lock: {mode: governance, days: 1}\n"


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(MIB)


def appliance_of(directory: Path, server: S3Server) -> Appliance:
    made = make_appliance(directory, f"s3://{server.bucket}/main", server, CONFIG)
    text = made.config.read_text()
    made.config.write_text(text.replace("state_dir:", f"{LOCK}state_dir:", 1))
    return made


@pytest.fixture(scope="module")
def admin(seaweedfs: S3Server) -> S3Server:
    return make_locked_bucket(seaweedfs, "stolen")


@pytest.fixture(scope="module")
def writer(admin: S3Server) -> S3Server:
    return identity(admin, "writer")


@pytest.fixture(scope="module")
def appliance(writer: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Two points of ``vm``, made by an identity that can delete nothing."""
    made = appliance_of(tmp_path_factory.mktemp("stolen"), writer)
    told = made.drvm("init", expect=3)
    assert "delete: access denied" in told.err
    for seed in range(2):
        image = made.directory / "vm.raw"
        image.write_bytes(content(seed))
        made.drvm("-q", "backup", "--image", "--name", "vm", str(image))
    return made


def identity(admin: S3Server, name: str) -> S3Server:
    return make_identity(admin, name, statements(name, admin.bucket))


def keys(server: S3Server) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}


def restored(
    appliance: Appliance, server: S3Server, point: str, *options: str, expect: int = 3
) -> bytes:
    out = appliance.directory / f"out-{len(list(appliance.directory.iterdir()))}"
    arguments = ("-q", "restore", point, "--output", str(out), *options)
    appliance.drvm(*arguments, expect=expect, env=keys(server))
    (image,) = out.iterdir()
    return image.read_bytes()


@dataclass(frozen=True)
class Ravaged:
    """``before``: the points as they were told; ``safe``: a moment before the worst was done."""

    appliance: Appliance
    before: list[dict[str, Any]]
    safe: str
    refused: Counter[str]


@pytest.fixture(scope="module")
def ravaged(appliance: Appliance, admin: S3Server, writer: S3Server) -> Ravaged:
    """Everything is overwritten with the writer's keys; and, as if its policy were a weaker one,
    hidden behind delete markers."""
    before = appliance.json("points")["points"]
    time.sleep(1.1)  # S3 tells whole seconds
    safe = dt.datetime.now(dt.UTC).isoformat()
    time.sleep(1.1)
    with credentials(writer), appliance.wiring() as wiring:
        refused = ravage(wiring.repository(), client(writer), admin.bucket, "main/")
    ravage(None, client(admin), admin.bucket, "main/", overwrite=False, for_ever=False)
    return Ravaged(appliance, before, safe, refused)


def test_the_writers_keys_destroy_nothing(
    ravaged: Ravaged, admin: S3Server, writer: S3Server
) -> None:
    appliance, refused = ravaged.appliance, ravaged.refused
    assert refused["delete"] == refused["delete for ever"] == refused["objects"] > 10
    told = appliance.drvm("--json", "points", expect=4)
    assert_clear(told.err, "somebody overwrote or deleted", "docs/S3.md")
    assert told.document["points"] == ravaged.before
    for kind in ("final", "keys", "points"):
        assert f"{kind}: somebody changed" in told.err
    pruned = appliance.drvm("prune", expect=4)
    assert_clear(pruned.err, "changed by somebody", "docs/S3.md")
    assert "0 of 2 points removed" in pruned.out
    collected = appliance.drvm("gc", expect=4)
    assert_clear(collected.err, "changed by somebody", "docs/S3.md")
    shown = appliance.drvm("-q", "--json", "show", "vm@latest", expect=3)
    assert shown.document["points"] == ravaged.before[-1:]
    assert restored(appliance, writer, "vm@latest") == content(1)
    reader, then = identity(admin, "reader"), ("--as-of", ravaged.safe)
    assert restored(appliance, reader, "vm", *then, expect=0) == content(1)


def test_the_collector_clears_up_and_can_not_remove_what_is_locked(
    ravaged: Ravaged, admin: S3Server
) -> None:
    """With its own keys, and not with the writer's."""
    appliance = ravaged.appliance
    appliance.drvm("versions", expect=4)
    refused = appliance.drvm("versions", "--undo", "--yes", expect=1)
    assert_clear(refused.err, "can't be deleted", "the collector's keys")
    collector = identity(admin, "collector")
    undone = appliance.drvm("versions", "--undo", "--yes", env=keys(collector))
    assert len(undone.out.splitlines()) > 10
    assert appliance.json("points")["points"] == ravaged.before
    told = appliance.json("lock", "--dry-run")
    assert (told["points"], told["ending"], told["absent"]) == (2, 0, [])
    found = client(admin).list_object_versions(Bucket=admin.bucket, Prefix="main/packs/")
    pack = found["Versions"][-1]
    with pytest.raises(ClientError, match="AccessDenied"):
        client(collector).delete_object(
            Bucket=admin.bucket, Key=pack["Key"], VersionId=pack["VersionId"]
        )
