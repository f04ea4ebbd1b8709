"""A server that answers as a test tells it to: real HTTP on loopback, without any S3 behind it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reply:
    """``declared`` is the Content-Length where it isn't the body's; ``hang_up`` closes the
    connection instead of answering, after the request was read."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    declared: int | None = None
    hang_up: bool = False
    delay_s: float = 0.0


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Service:
    """Answers with ``replies`` in turn, with the last one for ever; remembers what was asked."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.replies: list[Reply] = []
        self.seen: list[Seen] = []
        self.stopping = threading.Event()

    def will(self, *replies: Reply) -> None:
        self.replies = list(replies)

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def error(status: int, code: str, message: str = "") -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.service.seen.append(Seen(self.command, self.path, dict(self.headers), body))
        reply = self.service.next()
        self.service.stopping.wait(reply.delay_s)
        if reply.hang_up:
            self.close_connection = True
            return
        self.send_response(reply.status)
        headers = {"Last-Modified": "Mon, 23 Nov 2026 04:00:00 GMT", **reply.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        declared = len(reply.body) if reply.declared is None else reply.declared
        self.send_header("Content-Length", str(declared))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
            self.close_connection = declared != len(reply.body)

    do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Service]:
    """The server on a free port, for as long as the context lasts."""
    handler = type("Handler", (_Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        made = Service(f"http://127.0.0.1:{server.server_port}")
        handler.service = made  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.stopping.set()
        server.shutdown()
        thread.join()
