"""Services that never end, or lead elsewhere, cost bounded time and bytes."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from drvm.core.clock import SystemClock
from drvm.core.forked import forked
from drvm.drill.wire.asking import ask_http, ask_tcp
from drvm.drill.wire.messages import Answer, Http, Tcp

Serve = Callable[[socket.socket], object]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.contextmanager
def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Each connection in a thread; the port."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def one(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                stream = tls.wrap_socket(connection, server_side=True) if tls else connection
                with stream:
                    serve(stream)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(door.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield door.getsockname()[1]
        with contextlib.suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)


def says(data: bytes) -> Serve:
    def serve(stream: socket.socket) -> None:
        stream.recv(4096)
        stream.sendall(data)

    return serve


def endless(start: bytes = b"") -> Serve:
    def serve(stream: socket.socket) -> None:
        stream.sendall(start)
        while True:
            stream.sendall(b"x" * 65536)

    return serve


def tcp(port: int, banner: str | None = None) -> Answer:
    return ask_tcp(Tcp("127.0.0.1/32", port, banner, 10))


def http(port: int, **changes: object) -> Answer:
    fields: dict[str, object] = {
        "to": "127.0.0.1/32",
        "port": port,
        "path": "/",
        "tls": False,
        "host": None,
        "ca": None,
        "expect_status": (200,),
        "expect_body": None,
        "timeout_s": 10.0,
    }
    return ask_http(Http(**(fields | changes)))  # type: ignore[arg-type]


def test_an_open_port_passes_and_a_closed_one_is_an_answer() -> None:
    with serving(lambda stream: stream.recv(1)) as port:
        assert tcp(port).passed
    found = tcp(port)
    assert (found.passed, found.answered) == (False, True)


def test_a_banner_that_matches_passes() -> None:
    with serving(lambda stream: stream.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as port:
        assert tcp(port, "^SSH-2").passed


def test_an_endless_banner_is_read_to_its_limit() -> None:
    with serving(endless()) as port:
        found = tcp(port, "^SSH")
    assert (found.passed, found.answered) == (False, True)
    assert "does not match" in found.detail


def test_a_page_with_the_expected_status_and_content_passes() -> None:
    with serving(says(OK)) as port:
        assert http(port, expect_body="^hel+o$").passed
        wrong = http(port, expect_status=(204,))
    assert "not status 204: status 200" in wrong.detail


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
    ],
)
def test_an_endless_answer_is_read_to_its_limit(start: bytes) -> None:
    with serving(endless(start)) as port:
        found = http(port, expect_body="never")
    assert (found.passed, found.answered) == (False, True)


def test_endless_headers_and_endless_interim_answers_come_to_an_end() -> None:
    def headers(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            stream.sendall(b"X: y\r\n" * 1000)

    with serving(headers) as port:
        assert not http(port).passed

    def interim(stream: socket.socket) -> None:
        while True:
            stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with serving(interim) as port:
        ask = partial(http, port)
        assert forked(lambda: str(ask().passed).encode(), limit_s=0.5, max_bytes=10) is None


def test_redirects_on_the_guest_are_followed_a_few_times() -> None:
    seen: list[bytes] = []

    def serve(stream: socket.socket) -> None:
        line = stream.recv(4096).split(b"\r\n")[0]
        seen.append(line.split()[1])
        moved = b"HTTP/1.1 302 Moved\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n"
        stream.sendall(OK if line.split()[1] == b"/new" else moved)

    with serving(serve) as port:
        assert http(port, path="/old").passed
    assert seen == [b"/old", b"/new"]


def test_a_circle_of_redirects_comes_to_an_end() -> None:
    moved = b"HTTP/1.1 301 x\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    with serving(says(moved)) as port:
        assert "more than 5 redirects" in http(port).detail
        assert http(port, expect_status=(301,)).passed


@pytest.mark.parametrize("place", [b"http://192.0.2.1/", b"file:///etc/passwd", b"//[::1", b"ftp:"])
def test_a_redirect_to_another_place_is_not_followed(place: bytes) -> None:
    with serving(says(b"HTTP/1.1 302 x\r\nLocation: " + place + b"\r\n\r\n")) as port:
        found = http(port)
    assert (found.passed, found.answered) == (False, True)


def certified(directory: Path) -> tuple[ssl.SSLContext, str]:
    """A server of 127.0.0.1 with a certificate of its own making, and that."""
    key, now = ec.generate_private_key(ec.SECP256R1()), SystemClock().now()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a drilled guest")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "server.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context, pem.decode()


def test_any_certificate_will_do_unless_it_is_said_whose_are_believed(tmp_path: Path) -> None:
    context, own = certified(tmp_path)
    _, other = certified(tmp_path)
    with serving(says(OK), context) as port:
        assert http(port, tls=True).passed
        assert http(port, tls=True, ca=own).passed
        for changes in ({"ca": other}, {"ca": own, "host": "www.example.org"}):
            assert "certificate" in http(port, tls=True, **changes).detail


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serving(says(OK)) as port:
        assert http(port).passed
