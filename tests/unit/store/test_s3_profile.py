"""A profile of the AWS files is used instead of what the environment says, not besides it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.errors import StoreError
from drvm.store.urls import open_store, parse_address
from tests.fakes.s3_service import Reply, Service

ADDRESS = parse_address("s3://bucket/drvm")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of a first repository, and a file with those of a second."""
    (tmp_path / "credentials").write_text(
        "[offsite]\naws_access_key_id = SECOND\naws_secret_access_key = geheim\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FIRST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize(("profile", "key"), [(None, "FIRST"), ("offsite", "SECOND")])
def test_requests_are_signed_with_the_profiles_key(
    service: Service, profile: str | None, key: str
) -> None:
    store = open_store(ADDRESS, endpoint=service.endpoint, profile=profile)
    service.will(Reply(body=b"data"))
    assert store.get("drvm.json") == b"data"
    store.close()
    (request,) = service.seen
    assert f"Credential={key}/" in request.headers["Authorization"]


def test_a_profile_that_there_is_not_is_no_reason_to_take_the_environments(
    service: Service,
) -> None:
    with pytest.raises(StoreError, match="no usable credentials") as caught:
        open_store(ADDRESS, endpoint=service.endpoint, profile="absent")
    assert "profile" in caught.value.hint
    assert service.seen == []
