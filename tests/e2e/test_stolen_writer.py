"""Somebody has the writer's keys of the store and of the repository, and does the worst with both.

Shown on a real S3 server with versions and Object Lock, by the identities of docs/S3.md.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError

from drvm.core.units import MIB
from drvm.lab.services import S3Server
from tests import s3_policies
from tests.appliance import Appliance, make_appliance
from tests.buckets import client, credentials, make_identity, make_locked_bucket
from tests.hostile_writer import ravage
from tests.refusals import assert_clear

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
    return make_identity(admin, "writer", s3_policies.writer(admin.bucket))


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


def restored(appliance: Appliance, point: str, *options: str, expect: int = 3) -> bytes:
    out = appliance.directory / f"out-{len(list(appliance.directory.iterdir()))}"
    appliance.drvm("-q", "restore", point, "--output", str(out), *options, expect=expect)
    (image,) = out.iterdir()
    return image.read_bytes()


def test_the_writers_keys_destroy_nothing(
    appliance: Appliance, admin: S3Server, writer: S3Server
) -> None:
    before = appliance.json("points")["points"]
    time.sleep(1.1)  # S3 tells whole seconds
    safe = dt.datetime.now(dt.UTC).isoformat()
    time.sleep(1.1)
    with credentials(writer), appliance.wiring() as wiring:
        refused = ravage(wiring.repository(), client(writer), admin.bucket, "main/")
    assert refused["delete"] == refused["delete for ever"] == refused["objects"] > 10
    # What a weaker policy would let it do: a delete marker on everything.
    hidden = ravage(None, client(admin), admin.bucket, "main/", overwrite=False, for_ever=False)
    assert hidden["delete"] == 0

    told = appliance.drvm("--json", "points", expect=4)
    assert_clear(told.err, "somebody overwrote or deleted", "docs/S3.md")
    assert told.document["points"] == before
    for kind in ("final", "keys", "points"):
        assert f"{kind}: somebody changed" in told.err
    pruned = appliance.drvm("prune", expect=4)
    assert_clear(pruned.err, "changed by somebody", "docs/S3.md")
    assert "0 of 2 points removed" in pruned.out
    collected = appliance.drvm("gc", expect=4)
    assert_clear(collected.err, "changed by somebody", "docs/S3.md")
    assert appliance.drvm("-q", "--json", "show", "vm@latest", expect=3).document["points"] == [
        before[-1]
    ]
    assert restored(appliance, "vm@latest") == content(1)
    assert restored(appliance, "vm", "--as-of", safe, expect=0) == content(1)


def test_locked_points_stay_with_the_collectors_keys_too(admin: S3Server, tmp_path: Path) -> None:
    collector = make_identity(admin, "collector", s3_policies.collector(admin.bucket))
    found = client(admin).list_object_versions(Bucket=admin.bucket, Prefix="main/packs/")
    pack = found["Versions"][-1]
    with pytest.raises(ClientError, match="AccessDenied"):
        client(collector).delete_object(
            Bucket=admin.bucket, Key=pack["Key"], VersionId=pack["VersionId"]
        )
