"""Connections to a hostile guest, bounded in bytes; whoever calls bounds the time.

They are made in a fork that is nobody, and is ended when its time is up: a guest that says a byte
a minute, and a pattern that never comes to an end, cost no more than that.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from ipaddress import ip_interface
from urllib.parse import SplitResult, urljoin, urlsplit

from drvm.drill.checks.base import INTERFACE
from drvm.drill.wire.messages import Answer, Http, Tcp, answer

BANNER_BYTES = 16 * 1024
BODY_BYTES = 1024 * 1024
MAX_REDIRECTS = 5
_CONNECT_S = 5.0
_SHOWN_CHARS = 300
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": "drvm", "Accept": "*/*", "Connection": "close"}


def connect_limit_s(timeout_s: float) -> float:
    """Shorter than the whole: when that is over, the guest has taken the connection."""
    return min(_CONNECT_S, timeout_s / 2)


def ask_tcp(asked: Tcp) -> Answer:
    connected = _connected(asked.to, asked.port, asked.timeout_s)
    if isinstance(connected, Answer):
        return connected
    with connected:
        if asked.banner is None:
            return answer(True, True, f"{_place(asked.to, asked.port)} took the connection")
        connected.settimeout(asked.timeout_s)
        said = b""
        try:
            while len(said) < BANNER_BYTES and (data := connected.recv(BANNER_BYTES - len(said))):
                said += data
                text = said.decode(errors="replace")
                if re.search(asked.banner, text, re.MULTILINE):
                    return answer(True, True, f"it said {text[:_SHOWN_CHARS]}")
        except OSError as problem:
            return answer(False, True, f"{_words(problem)} after {_quoted(said)}")
        return answer(False, True, f"{_quoted(said)} does not match {asked.banner}")


def ask_http(asked: Http) -> Answer:
    address = str(ip_interface(asked.to).ip)
    own = asked.host or _bracketed(address)
    url = f"{'https' if asked.tls else 'http'}://{own}:{asked.port}{asked.path}"
    names = {name.lower() for name in (asked.host, address) if name}
    for _ in range(MAX_REDIRECTS + 1):
        try:
            found = _get(asked, urlsplit(url), names)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            return answer(False, True, f"{url[:_SHOWN_CHARS]}: {_words(problem)}")
        if isinstance(found, Answer):
            return found
        status, place, body = found
        if status not in _REDIRECTS or status in asked.expect_status or not place:
            return _judged(asked, status, body)
        url = place
    return answer(False, True, f"more than {MAX_REDIRECTS} redirects, the last one to {url[:200]}")


def _get(asked: Http, url: SplitResult, names: set[str]) -> Answer | tuple[int, str, bytes]:
    """Status, where it leads to, and the beginning of the body."""
    shown = url.geturl()[:_SHOWN_CHARS]
    if url.scheme not in ("http", "https") or (url.hostname or "").lower() not in names:
        return answer(False, True, f"redirected to {shown}, which is not this guest")
    port = url.port or (443 if url.scheme == "https" else 80)
    connected = _connected(asked.to, port, asked.timeout_s)
    if isinstance(connected, Answer):
        return connected
    with connected:
        connected.settimeout(asked.timeout_s)
        stream = connected
        if url.scheme == "https":
            stream = _tls(asked.ca).wrap_socket(connected, server_hostname=url.hostname)
        with stream:
            connection = http.client.HTTPConnection(url.netloc)
            connection.sock = stream
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("GET", path, headers={"Host": url.netloc, **_HEADERS})
            response = connection.getresponse()
            place = response.headers.get("Location", "")
            to = urljoin(url.geturl(), place) if place else ""
            return response.status, to, response.read(BODY_BYTES)


def _judged(asked: Http, status: int, body: bytes) -> Answer:
    text = body.decode(errors="replace")
    shown = f"status {status}\n{text[:_SHOWN_CHARS]}".rstrip()
    if status not in asked.expect_status:
        expected = " or ".join(map(str, asked.expect_status))
        return answer(False, True, f"not status {expected}: {shown}")
    if asked.expect_body is not None and not re.search(asked.expect_body, text, re.MULTILINE):
        return answer(False, True, f"the content does not match {asked.expect_body}: {shown}")
    return answer(True, True, shown)


def _tls(ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        context.load_verify_locations(cadata=ca)
        return context
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _connected(to: str, port: int, timeout_s: float) -> socket.socket | Answer:
    address = ip_interface(to).ip
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    place: tuple[str, int] | tuple[str, int, int, int] = (str(address), port)
    if address.version == 6:
        scope = socket.if_nametoindex(INTERFACE) if address.is_link_local else 0
        place = (str(address), port, 0, scope)
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(connect_limit_s(timeout_s))
    try:
        connection.connect(place)
    except ConnectionRefusedError:
        connection.close()
        return answer(False, True, f"{_place(to, port)} refused the connection")
    except OSError as problem:
        connection.close()
        return answer(False, False, f"{_place(to, port)}: {_words(problem)}")
    return connection


def _words(problem: Exception) -> str:
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    words = problem.strerror if isinstance(problem, OSError) else None
    return (words or str(problem) or type(problem).__name__)[:_SHOWN_CHARS]


def _quoted(said: bytes) -> str:
    return repr(said[:_SHOWN_CHARS].decode(errors="replace")) if said else "nothing"


def _place(to: str, port: int) -> str:
    return f"{_bracketed(str(ip_interface(to).ip))}:{port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
