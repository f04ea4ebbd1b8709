"""Servers on loopback that are told things: one for HTTP and one for mail, with the faults that
tests ask for."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Heard:
    """``answer``: of the HTTP server, the status, headers and body for each request. ``mails``: as
    they were sent, with their envelopes."""

    port: int = 0
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    answer: Callable[[], tuple[int, dict[str, str], bytes]] = lambda: (200, {}, b"ok")
    mails: list[tuple[str, list[str], str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    refuse: str = ""

    def documents(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]


def server_context(directory: Path) -> ssl.SSLContext:
    """For a server with the certificate that ``tests/tls.py`` made there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "servercert.pem", directory / "serverkey.pem")
    return context


@contextlib.contextmanager
def http_listener(tls: ssl.SSLContext | None = None) -> Iterator[Heard]:
    heard = Heard()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            heard.requests.append((self.command, self.path, body))
            status, headers, told = heard.answer()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(told)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that don't trust us go away

        def finish_request(self, request: Any, client_address: Any) -> None:
            if tls is None:
                super().finish_request(request, client_address)
                return
            with tls.wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)

    with Server(("127.0.0.1", 0), Handler) as server, _serving(server):
        heard.port = server.server_address[1]
        yield heard


@contextlib.contextmanager
def mail_listener(
    tls: ssl.SSLContext | None = None, *, at_once: bool = False, login: str = ""
) -> Iterator[Heard]:
    """With ``tls`` it offers STARTTLS, or speaks it ``at_once``; ``login``: user, NUL, password."""
    heard = Heard()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                self._talk(self.request, stack)

        def _talk(self, connection: socket.socket, stack: contextlib.ExitStack) -> None:
            encrypted = False
            if at_once and tls is not None:
                connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
                encrypted = True
            lines = stack.enter_context(connection.makefile("rb"))
            say = lambda text: connection.sendall(text.encode() + b"\r\n")  # noqa: E731
            sender, to = "", list[str]()
            say("220 listener")
            while line := lines.readline(2000):
                verb = line[:4].upper()
                if verb == b"EHLO":
                    offers = ["STARTTLS"] if tls is not None and not encrypted else []
                    offers += ["AUTH PLAIN"] if login else []
                    say("250-listener")
                    for offer in offers:
                        say(f"250-{offer}")
                    say("250 ok")
                elif verb == b"STAR" and tls is not None:
                    say("220 go on")
                    connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
                    encrypted = True
                    lines = stack.enter_context(connection.makefile("rb"))
                elif verb == b"AUTH":
                    given = base64.b64decode(line.split()[2]).decode().strip("\0")
                    heard.logins.append(given)
                    say("235 welcome" if given == login else f"535 no: {given.split(chr(0))[-1]}")
                elif heard.refuse and verb == b"MAIL":
                    say(heard.refuse)
                elif verb == b"MAIL":
                    sender, to = line.decode().partition(":")[2].strip(), []
                    say("250 ok")
                elif verb == b"RCPT":
                    address = line.decode().partition(":")[2].strip()
                    if "nobody" in address:
                        say("550 no such user")
                    else:
                        to.append(address)
                        say("250 ok")
                elif verb == b"DATA":
                    say("354 go on")
                    text = b"".join(iter(lines.readline, b".\r\n"))
                    heard.mails.append((sender, to, text.decode()))
                    heard.encrypted.append(encrypted)
                    say("250 taken")
                elif verb == b"QUIT":
                    say("221 bye")
                    return
                else:
                    say("250 ok")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server, _serving(server):
        heard.port = server.server_address[1]
        yield heard


@contextlib.contextmanager
def dripping_listener(opening: bytes, drip: bytes) -> Iterator[int]:
    """The port of a server that says ``opening`` and then ``drip`` ten times a second, for ever."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(opening)
                while not ended.wait(0.1):
                    self.request.sendall(drip)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server, _serving(server):
        try:
            yield server.server_address[1]
        finally:
            ended.set()


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
