from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drvm.core.errors import StoreRefused, UsageError
from drvm.store.urls import (
    DirectoryAddress,
    S3Address,
    StoreAddress,
    check_endpoint,
    open_store,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket", S3Address("bucket")),
        ("s3://bucket/", S3Address("bucket")),
        ("s3://my.bucket-1/a/b", S3Address("my.bucket-1", "a/b")),
        ("s3://bucket/a/", S3Address("bucket", "a")),
        ("file:///srv/drvm", DirectoryAddress(Path("/srv/drvm"))),
        ("file:///srv/drvm/", DirectoryAddress(Path("/srv/drvm"))),
        ("file:///srv/my%20backups", DirectoryAddress(Path("/srv/my backups"))),
        ("file:////srv", DirectoryAddress(Path("/srv"))),
    ],
)
def test_an_address_is_read_as_people_write_it(text: str, address: StoreAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bucket/prefix",
        "/srv/drvm",
        "http://host/bucket",
        "s3://",
        "s3://b",
        "s3://-bucket",
        "s3://bucket/a//b",
        "s3://bucket/../a",
        "s3://bucket/a b",
        "s3://bucket/a?x=1",
        "s3://bucket/" + "x" * 250 + "/" + "y" * 20,
        "s3://host:9000/bucket",
        "file://srv/drvm",
        "file://",
        "file:///srv/../etc",
        "file:///srv/%2e%2e/etc",
        "file:///srv/a?b",
        "file:///srv/a%zz",
        "file:///srv/%00",
        "file:///srv/a\nb",
    ],
)
def test_what_is_no_address_is_a_usage_error_that_says_the_forms(text: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse_address(text)
    assert failure.value.hint


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as failure:
        parse_address("s3://AKIAKEY:topsecret@bucket/prefix")
    assert "topsecret" not in failure.value.message + failure.value.hint
    with pytest.raises(UsageError) as failure:
        check_endpoint("https://user:topsecret@s3.example.org")
    assert "topsecret" not in failure.value.message + failure.value.hint


@given(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
@example(b"a/\xff?#%20")
def test_the_url_of_a_directory_leads_back_to_it(raw: bytes) -> None:
    path = Path("/srv/" + raw.decode("utf-8", "surrogateescape"))
    if ".." in path.parts:
        return
    address = DirectoryAddress(path)
    assert parse_address(str(address)) == address


@given(
    st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True),
    st.from_regex(r"([a-z0-9_-]{1,9}(/[a-z0-9_-]{1,9}){0,3})?", fullmatch=True),
)
def test_the_url_of_a_bucket_leads_back_to_it(bucket: str, prefix: str) -> None:
    address = S3Address(bucket, prefix)
    assert parse_address(str(address)) == address


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    for scheme in ("", "s3://", "file://", "file:///"):
        try:
            address = parse_address(scheme + text)
        except UsageError:
            continue
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "https://s3.example.org", "http://[::1]:8333/path"]
)
def test_an_endpoint_is_an_http_url(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint", ["", "s3.example.org", "ftp://host", "http://", "http://h:99999", "http://h?a=b"]
)
def test_what_is_no_http_url_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(UsageError):
        check_endpoint(endpoint)


def test_a_directory_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    address = DirectoryAddress(tmp_path / "new" / "repository")
    with pytest.raises(StoreRefused) as failure:
        open_store(address)
    assert "drvm init" in failure.value.hint
    open_store(address, create=True).put("a", b"x")
    assert open_store(address).get("a") == b"x"


def test_boto3_is_not_imported_before_a_bucket_is_opened() -> None:
    code = "import sys, drvm.store.urls, drvm.store.probe; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
