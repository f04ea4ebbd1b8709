"""Webhooks and the dead man's ping: one request, bounded in all it does.

Certificates are verified against the system's authorities. A redirect is not followed: it would
take the message, and what its URL says, to somebody else.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drvm import __version__
from drvm.core.errors import NotifyFailed, UsageError
from drvm.core.private import read_private_lines
from drvm.core.redact import keep_secret_url, redacted
from drvm.core.text import printable
from drvm.notify.model import Message

LIMIT_S = 30.0
"""For the request as a whole, whatever the other side does."""

_MAX_URL_CHARS = 4096
_TOLD_BYTES = 300
_PASSES = frozenset({408, 425, 429})
"""Answers below 500 that are worth another try."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A POST of ``Message.fields()`` as JSON. The URL is read anew each time."""

    name: str
    url_file: Path
    limit_s: float = LIMIT_S

    def send(self, message: Message) -> None:
        request("POST", self.url_file, message.fields(), self.limit_s)


@dataclass(frozen=True, slots=True)
class Ping:
    """A GET that says: I live, and I work."""

    name: str
    url_file: Path
    every_s: float
    limit_s: float = LIMIT_S

    def ping(self) -> None:
        request("GET", self.url_file, None, self.limit_s)


def request(method: str, url_file: Path, document: Any | None, limit_s: float) -> None:
    """Returns when the server of the URL in the file said yes. Raises ``NotifyFailed`` and
    ``UsageError``; messages name the file, never the URL."""
    import httpx  # 0.2 s that only senders pay

    url = read_url(url_file)
    where = f"the server of {url_file}"
    try:
        status, told = asyncio.run(_bounded(httpx, method, url, document, limit_s))
    except TimeoutError:
        raise NotifyFailed(f"{where} did not answer within {limit_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        reason = redacted(printable(str(error) or type(error).__name__, 200))
        raise NotifyFailed(f"{where} can't be asked: {reason}") from None
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise NotifyFailed(
            f"{where} sends elsewhere (HTTP {status}), which is not followed",
            hint="put the URL that it leads to into the file",
            refused=True,
        )
    reason = redacted(printable(told.decode("utf-8", "backslashreplace"), _TOLD_BYTES))
    raise NotifyFailed(
        f"{where} answered with HTTP {status}{': ' if reason else ''}{reason}",
        hint="compare the URL with what its service says" if status in (401, 403, 404) else "",
        refused=status < 500 and status not in _PASSES,
    )


def read_url(path: Path) -> str:
    """Raises ``UsageError``."""
    hint = f"one https:// URL in a file that only its owner can read: chmod 600 {path}"
    lines = read_private_lines(path, f"the URL file {path}", hint=hint)
    url = lines[0]
    keep_secret_url(url)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if len(lines) > 1 or len(url) > _MAX_URL_CHARS or not good or not url.isprintable():
        raise UsageError(f"the URL file {path} holds no URL", hint=hint)
    return url


async def _bounded(
    httpx: Any, method: str, url: str, document: Any | None, limit_s: float
) -> tuple[int, bytes]:
    """The status, and the beginning of what was told beside it."""
    async with asyncio.timeout(limit_s):
        context = ssl.create_default_context()
        headers = {"user-agent": f"drvm/{__version__}", "accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(verify=context, timeout=limit_s, headers=headers) as client,
            client.stream(method, url, json=document) as response,
        ):
            told = b""
            async for part in response.aiter_raw(_TOLD_BYTES):
                told += part
                if len(told) >= _TOLD_BYTES:
                    break
            return response.status_code, told[:_TOLD_BYTES]
