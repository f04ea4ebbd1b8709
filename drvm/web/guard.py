"""Around every request: who it is meant for, how long it may take, and what each answer says.

A page of another origin must get nothing done and nothing told, whatever name it made the
browser take for ours (DNS rebinding); a client that is slow must not keep others out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("drvm.web")

MAX_BODY_BYTES = 4096
BODY_S = 10.0
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:"),
        *("connect-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"),
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # not no-referrer: browsers would then send "Origin: null" with our own forms
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def guards(host_names: Sequence[str]) -> list[Middleware]:
    """``host_names``: those that a proxy in front is known by, besides loopback's."""
    return [
        Middleware(Guard),
        Middleware(
            TrustedHostMiddleware,
            allowed_hosts=[*LOOPBACK_NAMES, *host_names],
            www_redirect=False,
        ),
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES),
    ]


class Guard:
    """The headers of every answer; a body that takes too long is 408; what went wrong inside is
    logged here and told nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if message["status"] in (408, 413):
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, _in_time(receive), answer)
        except TimeoutError:
            if not began:
                await PlainTextResponse("Request Timeout", 408)(scope, receive, answer)
        except Exception:
            log.exception("the dashboard could not answer: this is a bug")
            if not began:
                await PlainTextResponse("Internal Server Error", 500)(scope, receive, answer)


def _in_time(receive: Receive) -> Receive:
    """The body must be whole within ``BODY_S``; what comes after it is only the disconnection."""
    whole = False
    ends_s: float | None = None

    async def bounded() -> Message:
        nonlocal whole, ends_s
        if whole:
            return await receive()
        ends_s = ends_s or asyncio.get_running_loop().time() + BODY_S
        async with asyncio.timeout_at(ends_s):
            message = await receive()
        whole = not message.get("more_body", False)
        return message

    return bounded


def is_own_form(headers: Headers) -> bool:
    """Whether a page of ours sent this, as far as the browser tells: by ``Sec-Fetch-Site``, which
    a page can't forge, and by ``Origin``. A request that has neither comes from no browser that
    is to be trusted with a session."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is None:
        return site is not None
    parts = urlsplit(origin) if _splits(origin) else None
    return (
        parts is not None
        and parts.scheme in ("http", "https")
        and parts.netloc.lower() == headers.get("host", "").lower()
    )


def _splits(origin: str) -> bool:
    try:
        urlsplit(origin)
    except ValueError:
        return False
    return True
