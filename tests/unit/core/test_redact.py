from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.core import redact
from drvm.core.redact import keep_secret, keep_secret_url, redacted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=6, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_a_known_secret_is_blotted_out_in_each_form(secret: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "_known", {})
        keep_secret(secret)
        assert "[secret]" in redacted(before + secret + after)


@pytest.fixture(autouse=True)
def _none_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", {})


def test_a_secret_is_found_encoded_and_as_a_literal() -> None:
    secret = "pass/word+ü 'x'"
    keep_secret(secret.encode())
    for form in (quote(secret), quote(secret, safe=""), f"{secret!r}"):
        assert "[secret]" in redacted(f"GET {form} failed"), form


def test_each_part_of_a_url_that_tells_is_a_secret() -> None:
    keep_secret_url("https://user:hunter22@hooks.example.org/services/T0000000000001/x?token=tok-1")
    for text in ("/services/T0000000000001/x", "T0000000000001", "hunter22", "token=tok-1"):
        assert redacted(f"<{text}>") == "<[secret]>"
    assert redacted("services of hooks.example.org") == "services of hooks.example.org"


def test_ordinary_words_are_left_alone() -> None:
    keep_secret("a")
    keep_secret("")
    assert redacted("a banana") == "a banana"
    assert json.loads(redacted('{"a": 1}')) == {"a": 1}
