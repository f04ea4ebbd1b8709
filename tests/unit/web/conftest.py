from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from drvm.web.app import make_app
from tests.fakes.clock import FakeClock
from tests.fakes.dashboard import NOW, TOKEN, FakeDaemon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have httpx2, which is not in the lock
    from starlette.testclient import TestClient

ORIGIN = "http://127.0.0.1:8467"


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def stranger(daemon: FakeDaemon, clock: FakeClock) -> Iterator[TestClient]:
    """A client that follows nothing and has no session; errors inside are answers, not raised."""
    app = make_app(daemon, TOKEN, host_names=["backup.example.org"], clock=clock)
    with TestClient(
        app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    """One with a session."""
    answer = stranger.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN})
    assert answer.status_code == 303, answer.text
    return stranger
