from __future__ import annotations

from pathlib import Path

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.errors import ConfigError
from drvm.notify.http import Ping, Webhook
from drvm.notify.mail import Mail
from drvm.notify.through_apprise import ThroughApprise
from drvm.wiring.telling import pings_of, ways_of
from tests.unit.notify.messages import make_message

EXAMPLE = Path(__file__).parents[3] / "config.example.yaml"
CONFIG = """
notify:
  - {name: chat, webhook: {url_file: /etc/drvm/url}}
  - name: mail
    tell: [rpo, damage]
    smtp: {server: mail.example.org, user: u, password_file: /etc/drvm/p,
           sender: drvm@example.org, to: [admin@example.org]}
  - {name: phone, tell: [drill, recovery], apprise: {urls_file: /etc/drvm/urls}}
  - {name: dead-man, ping: {url_file: /etc/drvm/ping, every: 5m}}
"""


def test_each_way_of_the_config_is_made_and_hears_what_it_is_to_hear() -> None:
    settings = resolve(parse_config(CONFIG.encode(), "test", {}), {})
    ways = ways_of(settings)
    assert [type(way) for way, _ in ways] == [Webhook, Mail, ThroughApprise]
    assert pings_of(settings) == [Ping("dead-man", Path("/etc/drvm/ping"), 300.0)]
    heard = {
        way.name: [
            f"{kind} {event}"
            for kind in ("failure", "rpo", "drill", "damage")
            for event in ("raised", "over")
            if wanted(make_message(event, kind=kind))  # type: ignore[arg-type]
        ]
        for way, wanted in ways
    }
    assert len(heard["chat"]) == 8
    assert heard["mail"] == ["rpo raised", "damage raised"]
    assert heard["phone"] == ["drill raised", "drill over"]


def test_the_example_shows_each_way_as_it_would_be_read() -> None:
    lines = EXAMPLE.read_text().partition("\n# notify:\n")[2].partition("\n\n")[0].splitlines()
    text = "notify:\n" + "\n".join(line.removeprefix("# ") for line in lines) + "\n"
    settings = resolve(parse_config(text.encode(), "example", {}), {})
    assert len(ways_of(settings)) + len(pings_of(settings)) == len(settings.notify) == 4


@pytest.mark.parametrize(
    "text",
    [
        "{name: x, tell: [recovery], webhook: {url_file: /x}}",
        "{name: x, tell: [rpo], ping: {url_file: /x}}",
        "{name: x, smtp: {server: m, sender: 'a@b\\nBcc: c', to: [a@b]}}",
        "{name: x, smtp: {server: m, sender: a@b, to: ['a@b, c@d']}}",
    ],
)
def test_a_way_that_would_tell_nothing_or_somebody_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(f"notify: [{text}]".encode(), "test", {})
