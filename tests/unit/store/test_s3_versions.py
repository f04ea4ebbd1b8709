"""What is made of bad answers about versions and locks. What good servers do is in the contract."""

from __future__ import annotations

import datetime as dt
import urllib.parse
from collections.abc import Iterator

import pytest

from drvm.core.errors import ObjectDamaged, ObjectMissing, StoreRefused, StoreUnreachable
from drvm.store.s3 import S3Store
from drvm.store.s3_client import Patience
from tests.fakes.clock import FakeClock
from tests.fakes.s3_service import Reply, Service, error

TIME = "2026-11-23T04:00:00.000Z"


@pytest.fixture(scope="module")
def open_store(running_service: Service) -> Iterator[S3Store]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "AKIAQWERTZUIOPASDFGH")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_CONFIG_FILE", "/dev/null")
        made = S3Store(
            "bucket",
            "pre",
            endpoint=running_service.endpoint,
            patience=Patience(connect_s=2, read_s=2, attempts=2),
            clock=FakeClock(),
        )
        yield made
        made.close()


@pytest.fixture
def store(open_store: S3Store, service: Service) -> S3Store:
    """With its service as new."""
    return open_store


def version(key: str, identity: str, *, size: str = "1", time: str = TIME) -> str:
    return (
        f"<Version><Key>{key}</Key><VersionId>{identity}</VersionId><Size>{size}</Size>"
        f'<LastModified>{time}</LastModified><ETag>"{identity}"</ETag></Version>'
    )


def marker(key: str, identity: str, time: str) -> str:
    return (
        f"<DeleteMarker><Key>{key}</Key><VersionId>{identity}</VersionId>"
        f"<LastModified>{time}</LastModified></DeleteMarker>"
    )


def page(*entries: str, following: tuple[str, str] | None = None, truncated: str = "") -> Reply:
    truncated = truncated or ("true" if following else "false")
    text = f"<IsTruncated>{truncated}</IsTruncated>{''.join(entries)}"
    if following:
        key, identity = following
        text += f"<NextKeyMarker>{key}</NextKeyMarker>"
        text += f"<NextVersionIdMarker>{identity}</NextVersionIdMarker>" if identity else ""
    return Reply(200, f"<ListVersionsResult>{text}</ListVersionsResult>".encode())


def prefixes(service: Service) -> list[str]:
    """What was asked for."""
    queries = (urllib.parse.urlsplit(request.path).query for request in service.seen)
    return [urllib.parse.parse_qs(query)["prefix"][0] for query in queries]


def listed(store: S3Store) -> list[tuple[str, str, bool]]:
    return [(v.name, v.id, v.marker) for v in store.history.list("packs/")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(200, b"<V><Status>Enabled</Status></V>"), "kept"),
        (Reply(200, b"<V><Status>Suspended</Status></V>"), "kept"),
        (Reply(200, b"<V></V>"), "none"),
        (error(403, "AccessDenied"), "unknown"),
        (error(501, "NotImplemented"), "none"),
        (error(405, "MethodNotAllowed"), "none"),
    ],
)
def test_whether_versions_are_kept_is_asked_of_the_bucket(
    store: S3Store, service: Service, reply: Reply, expected: str
) -> None:
    service.will(reply)
    assert store.history.versioning() == expected
    assert service.seen[0].path == "/bucket?versioning"


def test_a_bucket_that_is_not_there_is_refused_whoever_asks(
    store: S3Store, service: Service
) -> None:
    service.will(error(404, "NoSuchBucket"))
    with pytest.raises(StoreRefused, match="no such bucket"):
        store.history.versioning()


def test_pages_of_versions_are_joined_and_put_in_order(store: S3Store, service: Service) -> None:
    service.will(
        page(
            version("pre/packs/b", "3"),
            version("pre/packs/b", "2", time="2026-11-23T03:00:00.000Z"),
            marker("pre/packs/a", "9", "2026-11-23T05:00:00.000Z"),
            following=("pre/packs/b", "2"),
        ),
        page(version("pre/packs/b", "1", time="2026-11-23T03:00:00.000Z"), following=("k", "")),
        page(
            version("pre/packs/a", "8"),
            version("pre/packs/a b", "7"),
            version("pre/packs/b", "3"),  # twice
        ),
    )
    assert listed(store) == [
        ("packs/a", "8", False),
        ("packs/a", "9", True),
        ("packs/b", "1", False),
        ("packs/b", "2", False),
        ("packs/b", "3", False),
    ]
    assert "key-marker=pre%2Fpacks%2Fb" in service.seen[1].path
    assert "version-id-marker=2" in service.seen[1].path


def test_names_that_a_page_within_a_directory_passes_over_are_asked_for(
    store: S3Store, service: Service
) -> None:
    """SeaweedFS shows ``a/`` and ``a-b`` before ``a``, and goes on behind them by name: whoever may
    write could hide manifests so."""
    hidden, junk = version("pre/points/u/id.g", "1"), version("pre/points/u/id/z", "2")
    nothing = page()
    service.will(
        page(junk, following=("pre/points/u/id/z", "2")),
        page(version("pre/points/u/ie.g", "3")),
        *(nothing, nothing, nothing, nothing, nothing),
        page(hidden, version("pre/points/u/id.g/y", "4"), following=("pre/points/u/id.g/y", "4")),
        nothing,
        page(version("pre/points/u/id.g", "5")),
        *(nothing, nothing),
    )
    found = [(version.name, version.id) for version in store.history.list("points/")]
    assert found == [
        ("points/u/id.g", "5"),
        ("points/u/id.g", "1"),
        ("points/u/id.g/y", "4"),
        ("points/u/id/z", "2"),
        ("points/u/ie.g", "3"),
    ]
    ends = ("u.versions", "u-", "u.", "u/id.versions", "u/id-", "u/id.")
    more = ("u/id.", "u/id.g.versions", "u/id.g-", "u/id.g.")
    assert prefixes(service) == [f"pre/points/{end}" for end in ("", "", *ends, *more)]


def test_a_name_that_longer_ones_push_off_its_page_is_asked_for(
    store: S3Store, service: Service
) -> None:
    last = version("pre/final/a.b+9", "2")
    service.will(
        page(last, following=("pre/final/a.b+9", "2")),
        *(page(), page()),
        page(version("pre/final/a.b", "1")),
    )
    assert [found.name for found in store.history.list("final/")] == ["final/a.b"]
    assert prefixes(service)[2:] == ["pre/final/a.versions", "pre/final/a.b.versions"]


def test_a_name_that_is_shown_for_itself_and_a_dot_is_left_out(
    store: S3Store, service: Service
) -> None:
    """SeaweedFS keeps the versions of ``a`` in ``a.versions``."""
    service.will(page(version("pre/pins/a", "1"), version("pre/pins/a.b", "2")))
    assert [found.name for found in store.history.list("pins/a.")] == ["pins/a.b"]


@pytest.mark.parametrize(
    "reply",
    [
        page(truncated="true"),
        page(following=("k", "v")),
        Reply(200, b"<ListVersionsResult></ListVersionsResult>"),
        error(500, "InternalError"),
    ],
    ids=["nowhere", "in-a-circle", "no-listing", "500"],
)
def test_a_listing_of_versions_that_is_not_whole_is_an_error(
    store: S3Store, service: Service, reply: Reply
) -> None:
    service.will(reply)
    with pytest.raises(StoreUnreachable):
        store.history.list("packs/")


@pytest.mark.parametrize(
    "entry", [version("other/packs/a", "1"), version("pre/packs/a", "1", size="-1")]
)
def test_versions_that_can_not_be_ours_are_damage(
    store: S3Store, service: Service, entry: str
) -> None:
    service.will(page(entry))
    with pytest.raises(ObjectDamaged):
        list(store.history.list("packs/"))


@pytest.mark.parametrize(
    "reply",
    [
        error(404, "NoSuchObjectLockConfiguration"),
        error(404, "ObjectLockConfigurationNotFoundError"),
        error(400, "InvalidRequest"),
        Reply(200, b"<Retention></Retention>"),
    ],
)
def test_without_a_lock_there_is_no_end_of_it(
    store: S3Store, service: Service, reply: Reply
) -> None:
    service.will(reply)
    assert store.history.retained_until("packs/a", "1") is None


def test_a_lock_has_an_end_and_a_version_that_is_gone_has_none(
    store: S3Store, service: Service
) -> None:
    text = f"<Retention><Mode>X</Mode><RetainUntilDate>{TIME}</RetainUntilDate></Retention>"
    service.will(Reply(200, text.encode()))
    until = store.history.retained_until("packs/a", "1")
    assert until == dt.datetime(2026, 11, 23, 4, tzinfo=dt.UTC)
    service.will(error(404, "NoSuchVersion"))
    for call in (
        lambda: store.history.retained_until("packs/a", "1"),
        lambda: store.get("packs/a", version="1"),
    ):
        with pytest.raises(ObjectMissing):
            call()
    store.history.delete("packs/a", "1")


def test_a_lock_that_may_not_be_asked_for_is_refused(store: S3Store, service: Service) -> None:
    service.will(error(403, "AccessDenied"))
    with pytest.raises(StoreRefused):
        store.history.retained_until("packs/a", "1")


def test_trials_cut_and_falsify_what_they_send(store: S3Store, service: Service) -> None:
    service.will(error(400, "BadDigest"))
    assert not store.trials.put_wrong("probe/a", b"data")
    service.will(Reply(200, headers={"ETag": '"0123"'}))
    assert store.trials.put_wrong("probe/a", b"data")
    service.will(error(403, "AccessDenied"))
    with pytest.raises(StoreRefused):
        store.trials.put_wrong("probe/a", b"data")
    service.seen.clear()
    store.trials.put_cut("probe/a", bytes(1 << 20))
    assert not [seen for seen in service.seen if len(seen.body) == 1 << 20]
