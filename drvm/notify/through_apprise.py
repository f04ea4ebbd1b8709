"""Whatever Apprise knows, where it is installed: a URL in each line of a private file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import NotifyFailed
from drvm.core.private import read_private_lines
from drvm.core.redact import keep_secret_url
from drvm.notify.model import Message


@dataclass(frozen=True, slots=True)
class ThroughApprise:
    """Its own limits hold (some seconds for each URL)."""

    name: str
    urls_file: Path

    def send(self, message: Message) -> None:
        hint = f"a URL of Apprise's in each line, for its owner alone: chmod 600 {self.urls_file}"
        urls = read_private_lines(self.urls_file, f"the URL file {self.urls_file}", hint=hint)
        for url in urls:
            keep_secret_url(url)
        try:
            import apprise
        except ImportError:
            raise NotifyFailed(
                "apprise is not installed",
                hint="install it into drvm's environment (pip install apprise), or use another way",
                refused=True,
            ) from None
        told = apprise.Apprise()
        bad = [number for number, url in enumerate(urls, 1) if not told.add(url)]
        if bad:
            raise NotifyFailed(
                f"apprise does not understand line {bad[0]} of {self.urls_file}", refused=True
            )
        kind = "success" if message.event == "over" else _KINDS[message.severity]
        try:
            arrived = told.notify(title=message.title(), body=message.body(), notify_type=kind)
        except Exception as error:  # noqa: BLE001 - its plugins raise what they like, with URLs
            raise NotifyFailed(f"apprise failed: {type(error).__name__}") from None
        if not arrived:
            raise NotifyFailed(f"apprise could not tell all of {self.urls_file}")


_KINDS = {"critical": "failure", "warning": "warning"}
