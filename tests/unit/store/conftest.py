from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.s3_service import Service, serving


@pytest.fixture(scope="module")
def running_service() -> Iterator[Service]:
    with serving() as made:
        yield made


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.seen.clear()
    running_service.replies.clear()
    return running_service
