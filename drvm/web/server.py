"""The dashboard's thread in the daemon: binds, serves, and lets go within seconds.

Nothing that goes wrong here may cost a backup: a port in use or a bad token file is logged with
what to do, and tried again every minute, so that putting it right needs no restart.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from drvm.core.errors import DrvmError, HostError, UsageError

log = logging.getLogger("drvm.web")

MAX_CONNECTIONS = 64
HEADERS_BYTES = 16 * 1024
REQUEST_S = 10.0
"""How long a client may take from opening a connection, or from the first byte of a further
request, to the end of a request's headers."""

KEPT_ALIVE_S = 15
STALLED_MS = 20_000
"""When a connection ends whose client takes nothing of what waits for it: by us, and by the kernel
(TCP_USER_TIMEOUT) where we are done with it."""

SEND_BUFFER_BYTES = 256 * 1024
STOP_S = 2
RETRY_S = 60.0


class Dashboard:
    """``make_app`` is called for each try to begin: it reads the token anew."""

    def __init__(self, make_app: Callable[[], Starlette], address: str, port: int) -> None:
        self._make_app = make_app
        self._address = address
        self._port = port
        self._stop = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self.started = threading.Event()

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Open streams end, requests get ``STOP_S`` to finish, and then nobody waits for them."""
        self._stop.set()
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_S + 1)

    @property
    def port(self) -> int:
        """Where 0 was asked for, the one that was given."""
        return self._port

    def _run(self) -> None:
        forward_logs()
        told = ""
        while not self._stop.is_set():
            try:
                self._serve()
                return
            except DrvmError as error:
                if error.with_hint != told:
                    log.error("no dashboard: %s; tried again every minute", error.with_hint)
                told = error.with_hint
            except Exception:
                log.exception("no dashboard: this is a bug; tried again every minute")
            self._stop.wait(RETRY_S)

    def _serve(self) -> None:
        """Until ``stop``. Raises ``DrvmError`` where it can't begin."""
        app = self._make_app()
        with listen(self._address, self._port) as listener:
            self._port = listener.getsockname()[1]
            server = _Server(_config(app), self.started)
            self._server = server
            if self._stop.is_set():
                return
            log.info("dashboard at http://%s", shown_address(self._address, self._port))
            asyncio.run(server.serve(sockets=[listener]))


def shown_address(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listen(address: str, port: int) -> socket.socket:
    """Raises ``HostError`` where the port is taken, ``UsageError`` where there is no such
    address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        where = shown_address(address, port)
        reason = (error.strerror or "no reason given").lower()
        hint = f"ss -ltnp 'sport = :{port}' shows who; or set daemon.dashboard.port"
        kind = HostError if port else UsageError
        raise kind(f"can't listen at {where}: {reason}", hint=hint) from None
    return listener


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS_BYTES,
        backlog=MAX_CONNECTIONS,
        timeout_keep_alive=KEPT_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )


class _Server(uvicorn.Server):
    """Signals are the daemon's; open streams are told to end before they are waited for."""

    def __init__(self, config: uvicorn.Config, started: threading.Event) -> None:
        super().__init__(config)
        self._is_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._is_started.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._is_started.clear()
        if isinstance(self.config.app, Starlette):
            self.config.app.state.live.end()
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class BoundedProtocol(H11Protocol):
    """uvicorn waits for ever for the headers of a request, and for who reads nothing; this does
    not, and takes no more connections than ``MAX_CONNECTIONS``."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        self._met()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_MS / 1000, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._moves_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._met()
        self._moves_again()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._met()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _met(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _moves_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class _Forwarded(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.handle(record)


def forward_logs() -> None:
    """What uvicorn calls an error, and nothing else of it, is logged as drvm's."""
    own = logging.getLogger("uvicorn")
    own.handlers = [_Forwarded(logging.ERROR)]
    own.propagate = False
