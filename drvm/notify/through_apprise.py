"""Whatever Apprise knows, where it is installed: a URL in each line of a private file."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drvm.core.errors import NotifyFailed
from drvm.core.private import read_private_lines
from drvm.core.redact import keep_secret_url, redacted
from drvm.core.text import printable
from drvm.notify.model import Message

LIMIT_S = 60.0
"""For one URL. Apprise's own limits are for each read, and it follows redirects."""

_KINDS = {"critical": "failure", "warning": "warning"}


@dataclass(frozen=True, slots=True)
class ThroughApprise:
    """Each URL gets a message once, also where others of the file fail and it is tried again;
    after a restart perhaps twice. A URL that holds Apprise longer than ``limit_s`` is left to a
    thread of its own, of which there is one at most: nothing more is told by this way until it
    has ended."""

    name: str
    urls_file: Path
    limit_s: float = LIMIT_S
    _reached: dict[str, set[str]] = field(default_factory=dict, repr=False, compare=False)
    _held: list[threading.Thread] = field(default_factory=list, repr=False, compare=False)

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
        reached = self._reached.get(message.id, set())
        self._reached.clear()
        self._reached[message.id] = reached
        problems: list[NotifyFailed] = []
        for number, url in enumerate(urls, 1):
            if url in reached:
                continue
            try:
                self._tell(apprise, url, f"URL {number} of {self.urls_file}", message)
                reached.add(url)
            except NotifyFailed as error:
                problems.append(error)
        if problems:
            refused = all(problem.refused for problem in problems)
            texts = "; ".join(problem.message for problem in problems[:3])
            raise NotifyFailed(texts, hint=problems[0].hint, refused=refused)
        self._reached.clear()

    def _tell(self, apprise: Any, url: str, where: str, message: Message) -> None:
        if any(thread.is_alive() for thread in self._held):
            raise NotifyFailed(f"apprise has not come back from an earlier message; {where} waits")
        self._held.clear()
        told = apprise.Apprise()
        if not told.add(url):
            raise NotifyFailed(f"apprise does not understand {where}", refused=True)
        kind = "success" if message.event == "over" else _KINDS[message.severity]
        answers: list[object] = []

        def notify() -> None:
            try:
                answers.append(
                    told.notify(
                        title=message.title(),
                        body=message.body(),
                        notify_type=kind,
                        body_format="text",  # or names of VMs would be markup in mails of Apprise's
                    )
                )
            except Exception as error:  # noqa: BLE001 - its plugins raise what they like, with URLs
                answers.append(error)

        with _Said() as said:
            thread = threading.Thread(target=notify, name=f"apprise-{self.name}", daemon=True)
            thread.start()
            thread.join(self.limit_s)
        if thread.is_alive():
            self._held.append(thread)
            raise NotifyFailed(f"apprise did not come back from {where} within {self.limit_s:g} s")
        if isinstance(answers[0], Exception):
            raise NotifyFailed(f"apprise failed at {where}: {type(answers[0]).__name__}")
        if not answers[0]:
            reason = redacted(printable(said.last, 200))
            raise NotifyFailed(f"apprise could not tell {where}{': ' if reason else ''}{reason}")


class _Said(logging.Handler):
    """Why something failed, Apprise says in its log alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()

    def __enter__(self) -> _Said:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)
