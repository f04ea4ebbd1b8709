"""Settings -> the ways to tell people, and what is told by each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from drvm.config.settings import Settings
from drvm.config.upkeep import NotifyConfig
from drvm.notify.http import Ping, Webhook
from drvm.notify.mail import Mail
from drvm.notify.model import Message, Way
from drvm.notify.through_apprise import ThroughApprise


def ways_of(settings: Settings) -> list[tuple[Way, Callable[[Message], bool]]]:
    """Each with what is told by it."""
    found: list[tuple[Way, Callable[[Message], bool]]] = []
    for config in settings.notify:
        way = _way(config)
        if way is not None:
            found.append((way, functools.partial(_is_wanted, frozenset(config.tell))))
    return found


def pings_of(settings: Settings) -> list[Ping]:
    return [
        Ping(config.name, Path(config.ping.url_file), config.ping.every_s)
        for config in settings.notify
        if config.ping is not None
    ]


def _way(config: NotifyConfig) -> Way | None:
    """``None`` for a ping."""
    if config.webhook is not None:
        return Webhook(config.name, Path(config.webhook.url_file))
    if config.apprise is not None:
        return ThroughApprise(config.name, Path(config.apprise.urls_file))
    if config.smtp is None:
        return None
    mail = config.smtp
    return Mail(
        name=config.name,
        server=mail.server,
        port=mail.port,
        security=mail.security,
        sender=mail.sender,
        to=mail.to,
        user=mail.user,
        password_file=Path(mail.password_file) if mail.password_file is not None else None,
    )


def _is_wanted(tell: frozenset[str], message: Message) -> bool:
    """Who hears of something hears of its end, if of any."""
    return message.kind in tell and (message.event != "over" or "recovery" in tell)
