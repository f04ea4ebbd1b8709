from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from drvm.core.errors import NotifyFailed
from drvm.notify.through_apprise import ThroughApprise
from tests.unit.notify.messages import make_message

SECRET = "tgram://123456:secret-of-the-bot/42"


class FakeApprise:
    told: list[tuple[str, str, str]] = []  # noqa: RUF012
    answer: object = True

    url = ""

    def add(self, url: str) -> bool:
        self.url = url
        return url.startswith("tgram:")

    def notify(self, *, title: str, body: str, notify_type: str, body_format: str) -> object:
        assert body_format == "text"
        self.told.append((title, self.url, notify_type))
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return self.answer(self.url)
        return self.answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeApprise]:
    module = ModuleType("apprise")
    module.Apprise = FakeApprise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apprise", module)
    monkeypatch.setattr(FakeApprise, "told", [])
    return FakeApprise


def make_way(tmp_path: Path, text: str = SECRET) -> ThroughApprise:
    path = tmp_path / "urls"
    path.write_text(f"# the phone\n{text}\n")
    path.chmod(0o600)
    return ThroughApprise("phone", path)


def test_apprise_is_told_with_the_kind_that_fits(fake: type[FakeApprise], tmp_path: Path) -> None:
    way = make_way(tmp_path)
    way.send(make_message())
    way.send(make_message("over"))
    assert [kind for _, _, kind in fake.told] == ["failure", "success"]
    assert fake.told[0][0] == "drvm kvm1: CRITICAL: web1: the last good point is 3 d old"


@pytest.mark.parametrize("answer", [False, None, RuntimeError(f"POST {SECRET} failed")])
def test_a_failure_of_apprise_is_told_without_its_urls(
    answer: object, fake: type[FakeApprise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "answer", answer)
    with pytest.raises(NotifyFailed) as caught:
        make_way(tmp_path).send(make_message())
    assert "secret-of-the-bot" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_url_that_apprise_does_not_know_is_named_by_its_line(
    fake: type[FakeApprise], tmp_path: Path
) -> None:
    with pytest.raises(NotifyFailed, match="URL 2") as caught:
        make_way(tmp_path, f"{SECRET}\nnonsense-secret").send(make_message())
    assert "nonsense-secret" not in str(caught.value)
    assert [url for _, url, _ in fake.told] == [SECRET]


def test_a_url_that_works_hears_a_message_once_while_another_is_tried_again(
    fake: type[FakeApprise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = SECRET.replace("42", "43")
    monkeypatch.setattr(fake, "answer", staticmethod(lambda url: url == SECRET))
    way = make_way(tmp_path, f"{dead}\n{SECRET}")
    for _ in range(2):
        with pytest.raises(NotifyFailed, match="could not tell URL 1") as caught:
            way.send(make_message())
        assert not caught.value.refused
    assert [url for _, url, _ in fake.told] == [dead, SECRET, dead]
    monkeypatch.setattr(fake, "answer", True)
    way.send(make_message())
    way.send(make_message(id="next"))
    assert [url for _, url, _ in fake.told][3:] == [dead, dead, SECRET]


def test_apprise_says_why_and_its_words_hold_no_secret(
    fake: type[FakeApprise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(url: str) -> bool:
        logging.getLogger("apprise").warning("POST to %s: error=403", url)
        return False

    monkeypatch.setattr(fake, "answer", staticmethod(fails))
    with pytest.raises(NotifyFailed, match=r"POST to \[secret\]: error=403"):
        make_way(tmp_path).send(make_message())
    assert logging.getLogger("apprise").handlers == []


def test_apprise_that_does_not_come_back_is_left_to_one_thread(
    fake: type[FakeApprise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(fake, "answer", staticmethod(lambda url: goes_on.wait(30)))
    way = dataclasses.replace(make_way(tmp_path), limit_s=0.05)
    with pytest.raises(NotifyFailed, match=r"did not come back from URL 1 .* within 0.05 s"):
        way.send(make_message())
    with pytest.raises(NotifyFailed, match="not come back from an earlier message"):
        way.send(make_message())
    assert len(fake.told) == 1
    goes_on.set()
    for thread in way._held:
        thread.join(10)
    way.send(make_message())
    assert len(fake.told) == 2


def test_a_missing_apprise_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(NotifyFailed, match="apprise is not installed") as caught:
        make_way(tmp_path).send(make_message())
    assert "pip install apprise" in caught.value.hint
