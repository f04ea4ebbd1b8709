from __future__ import annotations

import sys
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

    def add(self, url: str) -> bool:
        return url.startswith("tgram:")

    def notify(self, *, title: str, body: str, notify_type: str) -> object:
        self.told.append((title, body, notify_type))
        if isinstance(self.answer, Exception):
            raise self.answer
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
    with pytest.raises(NotifyFailed, match="line 2") as caught:
        make_way(tmp_path, f"{SECRET}\nnonsense-secret").send(make_message())
    assert "nonsense-secret" not in str(caught.value)
    assert fake.told == []


def test_a_missing_apprise_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(NotifyFailed, match="apprise is not installed") as caught:
        make_way(tmp_path).send(make_message())
    assert "pip install apprise" in caught.value.hint
