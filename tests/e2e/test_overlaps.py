"""Everything at once, in processes that dawdle, stand still or are killed: tests/overlaps.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drvm.lab.services import S3Server
from tests.overlaps import run


def test_every_point_that_says_ok_restores_on_a_directory(tmp_path: Path) -> None:
    outcomes = run(tmp_path, 50, 20261123)
    assert outcomes["backup ended"] > 20 and outcomes["gc ended"] > 20


@pytest.mark.s3
@pytest.mark.long  # every process makes an S3 client: half a minute a round on a busy host
def test_every_point_that_says_ok_restores_on_s3(
    tmp_path: Path, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drvm.store.s3 import S3Store  # boto3 takes 0.3 s to import

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)

    def store(name: str) -> S3Store:
        return S3Store(seaweedfs.bucket, f"overlaps-{name}", endpoint=seaweedfs.endpoint)

    run(tmp_path, 20, 20261123, (lambda: store("here"), lambda: store("there")))


@pytest.mark.long
def test_every_point_that_says_ok_restores_2000_times(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    run(tmp_path, 2000, seed)
