from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.errors import UsageError
from drvm.web.access import MAX_SESSIONS, SESSION_S, TRIES, TRY_AGAIN_S, Access, TooManyTries
from drvm.web.access import read_token as read
from tests.fakes.clock import FakeClock
from tests.fakes.dashboard import TOKEN


def token_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_is_the_line_of_a_private_file(tmp_path: Path) -> None:
    assert read(token_file(tmp_path, f"{TOKEN}\n")) == TOKEN


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match="can read the dashboard's token file") as caught:
        read(token_file(tmp_path, TOKEN, mode))
    assert TOKEN not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "short-1", "a" * 40, "123456789012345678", "fifteen-charact", "schlüssel-" * 4]
)
def test_a_weak_token_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(token_file(tmp_path, text))
    assert not text or text not in str(caught.value) + caught.value.hint


def test_a_missing_token_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        read(tmp_path / "absent")
    assert caught.value.hint


def test_the_right_token_opens_a_session_that_ends_in_time() -> None:
    clock = FakeClock()
    access = Access(TOKEN, clock.monotonic_s)
    session_id = access.log_in(TOKEN)
    assert session_id is not None and access.session(session_id) is not None
    clock.sleep(SESSION_S + 1)
    assert access.session(session_id) is None


def test_a_session_ends_where_it_is_logged_out() -> None:
    access = Access(TOKEN, FakeClock().monotonic_s)
    mine, other = access.log_in(TOKEN), access.log_in(TOKEN)
    assert mine and other and mine != other
    access.log_out(mine)
    assert access.session(mine) is None and access.session(other) is not None


def test_too_many_sessions_end_the_oldest() -> None:
    access = Access(TOKEN, FakeClock().monotonic_s)
    opened = [access.log_in(TOKEN) or "" for _ in range(MAX_SESSIONS + 1)]
    assert [access.session(one) is not None for one in opened] == [False] + [True] * MAX_SESSIONS


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\ud800"])
def test_any_other_token_opens_none(token: str) -> None:
    assert Access(TOKEN, FakeClock().monotonic_s).log_in(token) is None


def test_wrong_tries_are_throttled_also_for_the_right_token_and_by_time_forgiven() -> None:
    clock = FakeClock()
    access = Access(TOKEN, clock.monotonic_s)
    earlier = access.log_in(TOKEN) or ""
    for _ in range(TRIES):
        assert access.log_in("wrong") is None
    for token in ("wrong", TOKEN):
        with pytest.raises(TooManyTries):
            access.log_in(token)
    assert access.session(earlier) is not None
    clock.sleep(TRY_AGAIN_S)
    assert access.log_in(TOKEN) is not None
