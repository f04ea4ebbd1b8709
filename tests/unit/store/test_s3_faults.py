"""What the S3 store makes of bad answers. What good servers do is in the contract suite."""

from __future__ import annotations

import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from botocore.exceptions import FlexibleChecksumError

from drvm.core.clock import SystemClock
from drvm.core.errors import (
    Interrupted,
    ObjectExists,
    ObjectMissing,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)
from drvm.core.pace import Bandwidth
from drvm.core.units import MIB
from drvm.store.base import MAX_OBJECT_BYTES, Store
from drvm.store.history import LockRule
from drvm.store.s3 import S3Store
from drvm.store.s3_client import Patience
from drvm.store.s3_errors import Request, translate
from tests.fakes.clock import FakeClock
from tests.fakes.s3_service import Reply, Service, error

SECRET = "wJalrXUtnFEMIK7MDENG"
KEY = "AKIAQWERTZUIOPASDFGH"
DONE = Reply(200, headers={"ETag": '"0123"'})
BUSY = error(503, "SlowDown")
BROKEN = error(500, "InternalError")
GONE = Reply(hang_up=True)
WRITES = [Store.put.__name__, Store.put_if_absent.__name__]


class Patient(SystemClock):
    """Waits for nothing and remembers for how long it should have."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="module")
def patient() -> Patient:
    return Patient()


@pytest.fixture
def clock(patient: Patient) -> Patient:
    patient.slept.clear()
    return patient


@pytest.fixture(scope="module")
def open_store(running_service: Service, patient: Patient, environment: None) -> Iterator[S3Store]:
    made = S3Store(
        "bucket",
        "pre/fix",
        endpoint=running_service.endpoint,
        patience=Patience(connect_s=2, read_s=0.5, attempts=3),
        clock=patient,
        chance=lambda: 0.0,
    )
    yield made
    made.close()


@pytest.fixture
def store(open_store: S3Store, service: Service, clock: Patient) -> S3Store:
    """With its service and its clock as new."""
    return open_store


def test_an_answer_is_in_memory_once(store, service):
    body = bytes(range(256)) * (16 * MIB // 256)
    service.will(Reply(200, body))
    store.get("packs/a")
    tracemalloc.start()
    try:
        found = store.get("packs/a")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == body
    assert most < 1.5 * len(body)


def part(body: bytes, content_range: str) -> Reply:
    return Reply(206, body, {"Content-Range": content_range})


def page(*keys: str, following: str = "", truncated: str = "") -> Reply:
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size>"
        "<LastModified>2026-11-23T04:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    truncated = truncated or ("true" if following else "false")
    body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}"
    return Reply(200, f"{body}</ListBucketResult>".encode())


# -- reading ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fault",
    [
        BROKEN,
        BUSY,
        error(429, "TooManyRequests"),
        error(400, "RequestTimeout"),
        Reply(502, b"<html>bad gateway</html>"),
        GONE,
        Reply(200, b"half", declared=8),
        Reply(200, b"late", delay_s=1.0),
    ],
    ids=["500", "503", "429", "400-timeout", "502-html", "hang-up", "truncated", "late"],
)
def test_a_read_is_repeated_after_a_passing_fault(
    store: S3Store, service: Service, fault: Reply
) -> None:
    service.will(fault, Reply(200, b"complete"))
    assert store.get("a") == b"complete"
    assert [seen.path for seen in service.seen] == ["/bucket/pre/fix/a"] * 2


@pytest.mark.parametrize(
    "fault", [BROKEN, GONE, Reply(200, b"half", declared=8)], ids=["500", "hang-up", "truncated"]
)
def test_a_read_is_given_up_after_bounded_attempts_with_growing_pauses(
    store: S3Store, service: Service, clock: Patient, fault: Reply
) -> None:
    service.will(fault)
    for call in (lambda: store.get("a"), lambda: store.get_tail("a", 4)):
        service.seen.clear()
        clock.slept.clear()
        with pytest.raises(StoreUnreachable) as failure:
            call()
        assert type(failure.value) is StoreUnreachable
        assert "bucket" in failure.value.message
        assert len(service.seen) == 3
        assert clock.slept == [0.25, 0.5]


def test_a_signal_in_the_middle_of_a_request_is_no_fault_of_the_connection(
    store: S3Store, service: Service
) -> None:
    service.will(Reply(200, b"late", delay_s=0.3))

    def interrupt(*_: object) -> None:
        raise Interrupted("ended by SIGALRM")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Interrupted, match="SIGALRM"):
            store.get("a")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(service.seen) == 1


def test_pauses_are_shortened_by_chance(service: Service, clock: Patient) -> None:
    store = S3Store("bucket", endpoint=service.endpoint, clock=clock, chance=lambda: 0.5)
    service.will(BUSY)
    with pytest.raises(StoreUnreachable):
        store.get("a")
    store.close()
    assert clock.slept == [0.1875, 0.375, 0.75, 1.5]


def test_a_range_that_the_service_ignores_is_cut_here(store: S3Store, service: Service) -> None:
    service.will(Reply(200, b"0123456789"))
    assert store.get("a", offset=3, length=4) == b"3456"
    assert store.get("a", offset=3) == b"3456789"
    assert store.get_tail("a", 4) == b"6789"
    assert store.get_tail("a", 40) == b"0123456789"
    for offset, length in ((8, 3), (11, None)):
        with pytest.raises(StoreError, match="has 10 bytes"):
            store.get("a", offset=offset, length=length)


@pytest.mark.parametrize(
    "answer",
    [
        part(b"0123", "bytes 0-3/10"),
        part(b"345", "bytes 3-5/10"),
        part(b"345", "bytes 3-6/10"),
        part(b"34567", "bytes 3-6/10"),
        part(b"3456", "bytes 3-6/*"),
        part(b"3456", "rubbish"),
        Reply(206, b"3456"),
    ],
)
def test_other_bytes_than_asked_for_are_never_returned(
    store: S3Store, service: Service, answer: Reply
) -> None:
    service.will(answer)
    with pytest.raises(StoreUnreachable):
        store.get("a", offset=3, length=4)


def test_a_tail_that_is_not_the_end_is_never_returned(store: S3Store, service: Service) -> None:
    service.will(part(b"0123", "bytes 0-3/10"))
    with pytest.raises(StoreUnreachable):
        store.get_tail("a", 4)


def test_an_answer_without_end_is_not_read(store: S3Store, service: Service) -> None:
    service.will(Reply(200, b"x", declared=MAX_OBJECT_BYTES + 1))
    with pytest.raises(StoreError, match="more than"):
        store.get("a")
    assert len(service.seen) == 1


def test_an_answer_that_trickles_is_given_up(service: Service) -> None:
    class Racing(Patient):
        now_s = 0.0

        def monotonic_s(self) -> float:
            self.now_s += 100.0
            return self.now_s

    store = S3Store("bucket", endpoint=service.endpoint, clock=Racing())
    service.will(Reply(200, b"drop"))
    with pytest.raises(StoreUnreachable, match="only 4 bytes"):
        store.get("a")
    store.close()


def test_a_checksum_of_aws_that_does_not_fit_is_a_passing_fault() -> None:
    wrong = FlexibleChecksumError(error_msg="expected checksum abcd did not match")
    fault = translate(wrong, Request("bucket", "https://s3.amazonaws.com", "a"))
    assert type(fault) is StoreUnreachable


# -- absence ----------------------------------------------------------------------------------
def test_a_missing_object_is_told_from_a_missing_bucket(store: S3Store, service: Service) -> None:
    service.will(error(404, "NoSuchKey"))
    for call in (store.get, store.head):
        with pytest.raises(ObjectMissing):
            call("a")
    service.will(error(404, "NoSuchBucket"))
    for call in (store.get, store.head, store.delete, lambda name: list(store.list(name))):
        with pytest.raises(StoreRefused, match="no such bucket"):
            call("a")


def test_a_404_that_is_not_of_s3_says_nothing_about_objects(
    store: S3Store, service: Service
) -> None:
    service.will(Reply(404, b"<html>not found</html>"))
    for call in (store.get, store.head):
        with pytest.raises(StoreRefused) as failure:
            call("a")
        assert "S3 service" in failure.value.hint


def test_delete_does_not_mind_a_service_that_minds_absence(
    store: S3Store, service: Service
) -> None:
    service.will(error(404, "NoSuchKey"))
    store.delete("a")


# -- listing ----------------------------------------------------------------------------------
def test_pages_are_joined_ordered_and_named_without_the_prefix(
    store: S3Store, service: Service
) -> None:
    service.will(
        page("pre/fix/a/x", "pre/fix/a-b", following="t1"),
        BROKEN,
        page("pre/fix/a-b", "pre/fix/c", following="t2"),
        page("pre/fix/b"),
    )
    assert [info.name for info in store.list("")] == ["a-b", "a/x", "b", "c"]
    assert [("continuation-token=t2" in seen.path) for seen in service.seen] == [
        False,
        False,
        False,
        True,
    ]


def test_names_that_can_not_be_ours_are_left_out(store: S3Store, service: Service) -> None:
    service.will(page("pre/fix/", "pre/fix/a/", "pre/fix/a b", "pre/fix/../c", "pre/fix/d"))
    assert [info.name for info in store.list("")] == ["d"]


@pytest.mark.parametrize(
    "answer",
    [
        Reply(200),
        Reply(200, b"<html></html>"),
        Reply(200, b"<ListBucketResult></ListBucketResult>"),
        Reply(200, page("pre/fix/a").body[:-30], declared=len(page("pre/fix/a").body)),
        Reply(200, page("pre/fix/a").body[:-30]),
        page("pre/fix/a", truncated="true"),
        page("pre/fix/a", following="always"),
        BROKEN,
    ],
    ids=["empty", "html", "bare", "truncated", "cut", "no-token", "same-token", "500"],
)
def test_a_listing_that_is_not_whole_is_an_error(
    store: S3Store, service: Service, answer: Reply
) -> None:
    service.will(answer)
    with pytest.raises(StoreUnreachable):
        list(store.list(""))


def test_names_that_were_not_asked_for_are_an_error(store: S3Store, service: Service) -> None:
    service.will(page("elsewhere/a"))
    with pytest.raises(StoreError, match="not asked for"):
        list(store.list(""))


# -- writing ----------------------------------------------------------------------------------
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "fault",
    [
        GONE,
        BROKEN,
        error(503, "SlowDownWrite"),
        Reply(502, b"<html></html>"),
        Reply(200, b"<html>welcome to our hotel</html>"),
        Reply(200, delay_s=1.0),
    ],
    ids=["hang-up", "500", "quorum", "502", "not-s3", "late"],
)
@pytest.mark.parametrize("size_bytes", [10, 1_000_000])
def test_a_write_whose_answer_was_lost_is_never_sent_again(
    store: S3Store, service: Service, write: str, fault: Reply, size_bytes: int
) -> None:
    service.will(fault)
    with pytest.raises(OutcomeUnknown):
        getattr(store, write)("a", bytes(size_bytes))
    assert len(service.seen) == 1


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "fault", [BUSY, error(429, "TooManyRequests"), error(409, "ConditionalRequestConflict")]
)
def test_a_write_that_was_not_done_is_sent_again(
    store: S3Store, service: Service, write: str, fault: Reply
) -> None:
    service.will(fault, DONE)
    getattr(store, write)("a", b"data")
    assert [seen.body for seen in service.seen] == [b"data", b"data"]


def test_a_write_that_never_gets_through_is_not_in_doubt(store: S3Store, service: Service) -> None:
    service.will(error(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreUnreachable) as failure:
        store.put_if_absent("a", b"data")
    assert not isinstance(failure.value, OutcomeUnknown)
    assert len(service.seen) == 3


def test_only_create_if_absent_sends_the_condition(store: S3Store, service: Service) -> None:
    service.will(DONE)
    store.put("a", b"data")
    store.put_if_absent("a", b"data")
    assert [seen.headers.get("If-None-Match") for seen in service.seen] == [None, "*"]


def test_the_loser_of_a_create_is_told(store: S3Store, service: Service) -> None:
    service.will(error(412, "PreconditionFailed"))
    with pytest.raises(ObjectExists):
        store.put_if_absent("a", b"data")


def test_a_service_without_conditional_writes_is_refused(store: S3Store, service: Service) -> None:
    service.will(error(501, "NotImplemented"))
    with pytest.raises(StoreRefused) as failure:
        store.put_if_absent("a", b"data")
    assert "one writing host" in failure.value.hint


def test_an_upload_that_trickles_is_given_up_and_in_doubt(service: Service) -> None:
    class Racing(Patient):
        now_s = 0.0

        def monotonic_s(self) -> float:
            self.now_s += 100.0
            return self.now_s

    store = S3Store("bucket", endpoint=service.endpoint, clock=Racing())
    service.will(DONE)
    with pytest.raises(OutcomeUnknown):
        store.put("a", bytes(MIB))
    store.close()


def test_no_attempt_begins_when_the_time_is_up(service: Service) -> None:
    clock = FakeClock()
    store = S3Store(
        "bucket", endpoint=service.endpoint, patience=Patience(attempts=9, total_s=3), clock=clock
    )
    service.will(BUSY)
    with pytest.raises(StoreUnreachable):
        store.get("a")
    store.close()
    assert 3 < clock.passed_s < 8
    assert len(service.seen) < 9


# -- bandwidth --------------------------------------------------------------------------------
def test_uploads_and_downloads_share_their_limits_over_threads_and_stores(
    service: Service,
) -> None:
    clock = FakeClock()
    limits = Bandwidth.of(2, 1, clock)
    stores = [S3Store("bucket", endpoint=service.endpoint, clock=clock, limits=limits)] * 2
    service.will(DONE)
    stores[0].put("a", bytes(4 * MIB))
    stores[1].put("b", bytes(100))
    stores[1].put("c", b"")
    assert clock.passed_s == pytest.approx(2.0, abs=0.05)
    service.will(Reply(200, bytes(3 * MIB)))
    before_s = clock.passed_s
    for store in stores:
        assert len(store.get("a")) == 3 * MIB
    assert clock.passed_s - before_s == pytest.approx(6.0, abs=0.5)
    stores[0].close()


def test_a_slow_limit_is_no_trickle(service: Service) -> None:
    """What the pace makes a body wait does not count against it."""
    clock = FakeClock()
    limits = Bandwidth.of(1, 1, clock)
    limits.upload.wait(600 * MIB)  # booked by somebody else
    store = S3Store("bucket", endpoint=service.endpoint, clock=clock, limits=limits)
    service.will(DONE)
    store.put("a", bytes(MIB))
    store.close()
    assert clock.passed_s > 600


# -- locks ------------------------------------------------------------------------------------
def test_only_what_the_rule_names_is_locked_and_with_a_checksum(service: Service) -> None:
    clock = FakeClock()
    rule = LockRule("compliance", 30, ("packs/",))
    store = S3Store("bucket", endpoint=service.endpoint, clock=clock, lock=rule)
    service.will(DONE)
    store.put("packs/a", b"data")
    store.put_if_absent("index/a", b"data")
    store.close()
    locked, plain = ({k.lower(): v for k, v in seen.headers.items()} for seen in service.seen)
    assert locked["x-amz-object-lock-mode"] == "COMPLIANCE"
    assert locked["x-amz-object-lock-retain-until-date"] == "2026-12-23T04:00:00Z"
    assert locked["content-md5"] == "jXd/OF09/siBXSD3SWAm3A=="
    assert not [name for name in plain if "lock" in name or name == "content-md5"]


# -- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "code", "says", "hints"),
    [
        (403, "AccessDenied", "access denied", "AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", "unknown", "AWS_PROFILE"),
        (403, "SignatureDoesNotMatch", "secret key is wrong", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "expired", "renew"),
        (403, "RequestTimeTooSkewed", "clock", "NTP"),
        (400, "AuthorizationHeaderMalformed", "region", "AWS_REGION"),
        (404, "NoSuchBucket", "no such bucket", "create it"),
        (403, "QuotaExceeded", "full", "quota"),
        (507, "XMinioStorageFull", "full", "prune"),
        (401, "Unheard", "access denied", "AWS_ACCESS_KEY_ID"),
        (405, "MethodNotAllowed", "HTTP 405", "endpoint"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do_and_no_secret(
    store: S3Store, service: Service, status: int, code: str, says: str, hints: str
) -> None:
    service.will(error(status, code, message=f"{KEY} {SECRET} is not good"))
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.put("a", b"x"),
        lambda: store.put_if_absent("a", b"x"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
    ]
    for call in calls:
        service.seen.clear()
        with pytest.raises(StoreRefused) as failure:
            call()
        assert len(service.seen) == 1
        assert says in failure.value.message
        assert service.endpoint in failure.value.message
        assert hints in failure.value.hint
        for secret in (KEY, SECRET):
            assert secret not in repr(failure.value) + failure.value.hint
        assert failure.value.__cause__ is None
        assert failure.value.__context__ is None


def test_a_forbidden_head_is_refused(store: S3Store, service: Service) -> None:
    service.will(Reply(403))
    with pytest.raises(StoreRefused, match="access denied"):
        store.head("a")


def test_missing_credentials_are_refused_with_where_they_are_looked_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = S3Store("bucket", endpoint=service.endpoint)
    with pytest.raises(StoreRefused, match="no usable credentials") as failure:
        store.put("a", b"x")
    store.close()
    assert "AWS_ACCESS_KEY_ID" in failure.value.hint
    assert service.seen == []


def test_an_unknown_profile_is_refused_when_the_store_is_opened(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefused) as failure:
        S3Store("bucket", endpoint=service.endpoint)
    assert "AWS_PROFILE" in failure.value.hint


# -- connections ------------------------------------------------------------------------------
@pytest.mark.parametrize("call", ["get", "head", "delete", *WRITES])
def test_where_nobody_listens_nothing_was_written(clock: Patient, call: str) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        store = S3Store("bucket", endpoint=endpoint, clock=clock)
        with pytest.raises(StoreUnreachable, match="connection refused") as failure:
            getattr(store, call)(*(["a", b"x"] if call in WRITES else ["a"]))
        store.close()
    assert not isinstance(failure.value, OutcomeUnknown)
    assert endpoint in failure.value.message
    assert len(clock.slept) == 4


def test_tls_to_a_service_without_tls_is_an_error_of_ours(service: Service, clock: Patient) -> None:
    store = S3Store("bucket", endpoint=service.endpoint.replace("http:", "https:"), clock=clock)
    with pytest.raises(StoreUnreachable, match="TLS failed"):
        store.get("a")
    store.close()


def test_the_endpoint_may_come_from_the_environment(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.endpoint)
    store = S3Store("bucket")
    service.will(DONE)
    store.put("a", b"x")
    store.close()
    assert service.seen[0].path == "/bucket/a"
    assert "x-amz-checksum-crc32" not in {name.lower() for name in service.seen[0].headers}


@pytest.mark.parametrize("size_bytes", [10, 1_000_000])
def test_payloads_are_sent_as_they_are_and_unsigned_on_loopback(
    store: S3Store, service: Service, size_bytes: int
) -> None:
    service.will(DONE)
    data = bytes(range(250)) * (size_bytes // 250)
    store.put("a", data)
    (seen,) = service.seen
    assert seen.body == data
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert not [name for name in headers if "checksum" in name or name == "x-amz-trailer"]


@pytest.mark.parametrize(
    ("endpoint", "signed"),
    [
        ("http://192.0.2.1:9000", True),
        ("http://s3.example.org", True),
        ("https://s3.example.org", False),
        ("http://localhost:9000", False),
        ("http://[::1]:9000", False),
    ],
)
def test_payloads_are_signed_where_somebody_could_change_them(endpoint: str, signed: bool) -> None:
    store = S3Store("bucket", endpoint=endpoint)
    assert store._client.meta.config.s3["payload_signing_enabled"] is signed
    store.close()


def test_aws_itself_keeps_the_checks_of_the_sdk() -> None:
    store = S3Store("bucket", region="eu-central-1")
    assert store._client.meta.config.request_checksum_calculation == "when_supported"
    assert "eu-central-1.amazonaws.com" in store._client.meta.endpoint_url
    store.close()
