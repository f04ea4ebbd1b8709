"""An HTTP proxy on loopback in front of an S3 server, which misbehaves where a rule tells it to.

It forwards byte for byte what the client signed, one upstream connection a request. A rule names
a kind of fault, the operations that it can strike, and the position of the first request that it
strikes; without a rule nothing is changed.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Operation = Literal["list", "get", "head", "put", "create", "delete"]

ALL: frozenset[Operation] = frozenset(("list", "get", "head", "put", "create", "delete"))
READS: frozenset[Operation] = frozenset(("list", "get", "head"))
BODIES: frozenset[Operation] = frozenset(("list", "get"))
WRITES: frozenset[Operation] = frozenset(("put", "create", "delete"))

_HOP_BY_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "expect"))
_UPSTREAM_LIMIT_S = 60.0


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def operation(self) -> Operation:
        names = {name.lower() for name, _ in self.headers}
        if self.method == "PUT":
            return "create" if "if-none-match" in names else "put"
        if self.method == "GET":
            query = urllib.parse.urlsplit(self.target).query
            return "list" if "list-type" in urllib.parse.parse_qs(query) else "get"
        return "head" if self.method == "HEAD" else "delete"


@dataclass(frozen=True)
class Answer:
    """``length``: what Content-Length says, where that is not what the body has."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    length: int | None = None

    def with_body(self, body: bytes) -> Answer:
        return replace(self, body=body, length=None)


@dataclass(frozen=True)
class Reaction:
    """What goes back to the client: ``raw`` bytes instead of HTTP, or an answer, of which only
    ``until`` bytes of the body are sent; at the end the connection may fall silent or break."""

    answer: Answer | None = None
    raw: bytes = b""
    until: int | None = None
    ending: Literal["kept", "reset", "silent"] = "kept"
    slow: bool = False


@dataclass
class Memory:
    """What the proxy has seen: earlier answers to reads by what was asked for, and writes to be
    sent once more."""

    answers: dict[str, Answer] = field(default_factory=dict)
    duplicates: list[Request] = field(default_factory=list)


Upstream = Callable[[Request], Answer]
React = Callable[[Request, Upstream, Memory], Reaction]


@dataclass(frozen=True)
class Rule:
    """Strikes the requests ``position``, ``position + 1`` ... of ``operations``: ``times`` of
    them (all that follow where it is ``None``)."""

    react: React
    operations: frozenset[Operation]
    position: int
    times: int | None = 1

    def strikes(self, count: int) -> bool:
        return count >= self.position and (self.times is None or count < self.position + self.times)


class Proxy:
    """Serves until ``close``; one rule at a time. ``counts``: requests by operation since the
    rule was set; ``struck``: how many of them the rule has changed."""

    def __init__(self, upstream: str) -> None:
        parts = urllib.parse.urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._lock = threading.Lock()
        self._rule: Rule | None = None
        self._memory = Memory()
        self._over = threading.Event()
        self.counts: dict[Operation, int] = {}
        self.struck = 0
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def under(self, rule: Rule | None) -> Iterator[None]:
        """While it lasts the rule applies; late duplicates have all arrived when it ends."""
        with self._lock:
            self._rule, self._memory, self.counts, self.struck = rule, Memory(), {}, 0
            self._over.clear()
        try:
            yield
        finally:
            self._over.set()
            with self._lock:
                self._rule = None
                late, self._memory = self._memory.duplicates, Memory()
            for request in late:
                self.forward(request)

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(*self._upstream, timeout=_UPSTREAM_LIMIT_S)
        try:
            connection.putrequest(
                request.method, request.target, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers:
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            response = connection.getresponse()
            body = response.read()
            headers = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in _HOP_BY_HOP | {"content-length"}
            }
            declared = response.getheader("Content-Length")
            length = int(declared) if request.method == "HEAD" and declared else None
            return Answer(response.status, headers, body, length)
        finally:
            connection.close()

    def react(self, request: Request) -> Reaction:
        operation = request.operation
        with self._lock:
            rule, memory = self._rule, self._memory
            struck = False
            if rule is not None and operation in rule.operations:
                concerned = sum(self.counts.get(one, 0) for one in rule.operations)
                struck = rule.strikes(concerned)
            self.counts[operation] = self.counts.get(operation, 0) + 1
            self.struck += struck
        if struck and rule is not None:
            return rule.react(request, self.forward, memory)
        answer = self.forward(request)
        if operation in BODIES and answer.status < 300:
            with self._lock:
                memory.answers.setdefault(request.target, answer)
        return Reaction(answer)

    def wait_over(self, limit_s: float) -> None:
        """Until the rule's time is over, or the limit."""
        self._over.wait(limit_s)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no news here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 120

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, tuple(self.headers.items()), body)
        reaction = self.server.proxy.react(request)
        self._send(reaction)
        if reaction.ending == "kept":
            return
        self.wfile.flush()
        self.close_connection = True
        if reaction.ending == "silent":
            self.server.proxy.wait_over(30)
        # an abortive close: the client sees a reset, not an end
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    do_GET = do_HEAD = do_PUT = do_DELETE = _serve  # noqa: N815

    def _send(self, reaction: Reaction) -> None:
        self.wfile.write(reaction.raw)
        answer = reaction.answer
        if answer is None:
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = answer.length if answer.length is not None else len(answer.body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = answer.body[: reaction.until]
        if reaction.slow:
            for start in range(0, min(len(body), 4096), 512):
                self.wfile.write(body[start : start + 512])
                self.wfile.flush()
                time.sleep(0.02)
            body = body[4096:]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the judge tells what happened."""
