"""The dashboard as an application: which path leads where, and who may go there.

Pages are for people with a session; ``/metrics`` and ``/report.json`` also for programs that bring
the token as ``Authorization: Bearer``. Nothing here restores or deletes: the two actions are those
that the daemon does by itself, sooner.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import DrvmError
from drvm.report.html import style_sheet
from drvm.report.json_report import json_report
from drvm.report.metrics import CONTENT_TYPE
from drvm.web.access import TRY_AGAIN_S, Access, Session, TooManyTries, same_text
from drvm.web.aside import Aside
from drvm.web.guard import guards, is_own_form
from drvm.web.latest import Latest
from drvm.web.live import Live
from drvm.web.pages import NotThere, Pages
from drvm.web.source import ACTIONS, Source

COOKIE = "drvm-session"
MAX_FIELDS = 4

_Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    source: Source,
    token: str,
    *,
    host_names: Sequence[str] = (),
    command: str = "drvm",
    clock: Clock | None = None,
) -> Starlette:
    """``host_names``: by which a proxy in front of it is known. ``command``: how this drvm is
    called, for commands to copy."""
    clock = clock or SystemClock()
    latest = Latest(source.report, clock.monotonic_s)
    dashboard = _Dashboard(
        source, Access(token, clock.monotonic_s), Pages(source, latest, clock, command)
    )
    app = Starlette(
        routes=dashboard.routes(),
        middleware=guards(host_names),
        exception_handlers={
            HTTPException: dashboard.refused,
            DrvmError: dashboard.failed,
            TooManyTries: dashboard.throttled,
            ClientDisconnect: dashboard.gone,
        },
    )
    app.router.redirect_slashes = False
    app.state.live = dashboard.live = Live(dashboard.pages.look, clock.monotonic_s)
    return app


class _Dashboard:
    live: Live

    def __init__(self, source: Source, access: Access, pages: Pages) -> None:
        self._source = source
        self._access = access
        self._aside = Aside()
        self.pages = pages

    def routes(self) -> list[Route]:
        page, program = self._page, self._program
        return [
            Route("/", page(lambda request, csrf: self.pages.overview(csrf))),
            Route("/vm/{uuid}", page(self._vm)),
            Route("/runs", page(self._runs)),
            Route("/drill/{drill}", page(self._drill)),
            Route("/drill/{drill}/screen.png", page(self._picture)),
            Route("/vm/{uuid}/{action}", self._act, methods=["POST"]),
            Route("/login", self._log_in, methods=["GET", "POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/events", self._events),
            Route("/metrics", program(self._metrics)),
            Route("/report.json", program(self._report_json)),
            *(Route(f"/static/{name}", _file(name, kind)) for name, kind in _FILES.items()),
        ]

    # -- who ----------------------------------------------------------------------------------
    def _session(self, request: Request) -> Session | None:
        return self._access.session(request.cookies.get(COOKIE, ""))

    def _page(self, show: Callable[[Request, str], str | Response]) -> _Handler:
        async def handler(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return RedirectResponse("/login", 303)
            shown = await self._aside(show, request, session.csrf)
            return shown if isinstance(shown, Response) else _html(shown)

        return handler

    def _program(self, answer: Callable[[], Response]) -> _Handler:
        async def handler(request: Request) -> Response:
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            bears = kind.lower() == "bearer" and self._access.is_token(token.strip())
            if not bears and self._session(request) is None:
                raise HTTPException(401, headers={"www-authenticate": "Bearer"})
            return await self._aside(answer)

        return handler

    async def _log_in(self, request: Request) -> Response:
        if request.method != "POST":
            if self._session(request) is not None:
                return RedirectResponse("/", 303)
            return _html(self.pages.login())
        fields = await _own_fields(request)
        try:
            session_id = self._access.log_in(fields.get("token", "").strip())
        except TooManyTries:
            return _html(self.pages.login("throttled"), 429, _RETRY_AFTER)
        if session_id is None:
            return _html(self.pages.login("wrong"), 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            session_id,
            httponly=True,
            samesite="strict",
            # browsers take such a cookie back only over TLS, which is a proxy's in front of us
            secure=request.headers.get("x-forwarded-proto", "").lower() == "https",
        )
        return response

    async def _log_out(self, request: Request) -> Response:
        await self._form_of_session(request)
        self._access.log_out(request.cookies.get(COOKIE, ""))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def _form_of_session(self, request: Request) -> None:
        """Raises 403 for what no form of this session sent."""
        session = self._session(request)
        fields = await _own_fields(request)
        if session is None or not same_text(fields.get("csrf", ""), session.csrf):
            raise HTTPException(403, "this form is not of your session: log in, and try again")

    # -- what ---------------------------------------------------------------------------------
    def _vm(self, request: Request, csrf: str) -> str:
        note = request.query_params.get("began", "")
        return self.pages.vm(request.path_params["uuid"], csrf, note)

    def _runs(self, request: Request, csrf: str) -> str:
        return self.pages.runs(csrf, request.query_params.get("state", ""))

    def _drill(self, request: Request, csrf: str) -> str:
        return self.pages.drill(request.path_params["drill"], csrf)

    def _picture(self, request: Request, csrf: str) -> Response:
        picture = self.pages.picture(request.path_params["drill"])
        return Response(picture, media_type="image/png")

    async def _act(self, request: Request) -> Response:
        await self._form_of_session(request)
        uuid, wish = request.path_params["uuid"], request.path_params["action"]
        action = next((known for known in ACTIONS if known == wish), None)
        if action is None:
            raise HTTPException(404)
        await self._aside(self.pages.known_vm, uuid)
        await self._aside(self._source.start, action, uuid)
        self.pages.expire()
        return RedirectResponse(f"/vm/{uuid}?began={action}", 303)

    async def _events(self, request: Request) -> Response:
        session_id = request.cookies.get(COOKIE, "")
        if self._access.session(session_id) is None:
            raise HTTPException(401)
        vm_uuid = request.query_params.get("vm", "")
        if vm_uuid:
            await self._aside(self.pages.known_vm, vm_uuid)
        return _Events(self.live, session_id, vm_uuid, self._access)

    def _metrics(self) -> Response:
        return Response(self._source.metrics(), media_type=CONTENT_TYPE)

    def _report_json(self) -> Response:
        report = self.pages.snapshot().report
        return Response(json_report(report), media_type="application/json")

    # -- what is refused ----------------------------------------------------------------------
    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "There is no such page.", 405: "That can't be done here."}
        detail = words.get(error.status_code, error.detail)
        page = self.pages.problem(error.status_code, detail, "", self._csrf(request))
        return _html(page, error.status_code, dict(error.headers or {}))

    async def failed(self, request: Request, error: Exception) -> Response:
        """Messages and hints of drvm's errors are for people, and never hold a secret."""
        assert isinstance(error, DrvmError)
        status = 409 if request.method == "POST" else 503
        if isinstance(error, NotThere):
            status = 404
        page = self.pages.problem(status, error.message, error.hint, self._csrf(request))
        return _html(page, status)

    async def throttled(self, _request: Request, _error: Exception) -> Response:
        return PlainTextResponse("Too Many Requests", 429, headers=_RETRY_AFTER)

    async def gone(self, _request: Request, _error: Exception) -> Response:
        return PlainTextResponse("", 400)

    def _csrf(self, request: Request) -> str:
        session = self._session(request)
        return session.csrf if session is not None else ""


_UNHELD = {"x-accel-buffering": "no"}
"""To a proxy: what comes in pieces is to be passed on in pieces."""

_RETRY_AFTER = {"retry-after": f"{TRY_AGAIN_S:.0f}"}

_FILES = {
    "report.css": "text/css",
    "dash.css": "text/css",
    "live.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""All files there are to be had, by name: no path is ever looked up."""


def _file(name: str, kind: str) -> _Handler:
    if name == "report.css":
        text = style_sheet()
    else:
        text = resources.files("drvm.web").joinpath("static", name).read_text("utf-8")

    async def handler(_request: Request) -> Response:
        return Response(text, media_type=kind)

    return handler


def _html(page: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(page, status, headers, "text/html")


async def _own_fields(request: Request) -> dict[str, str]:
    """The fields of a form of ours. Raises 403 for a page of others, 415 and 400 for what no form
    of ours sends."""
    if not is_own_form(request.headers):
        raise HTTPException(403, "this form is of another site")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "not a form")
    body = await request.body()
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise HTTPException(400, "not a form of ours") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise HTTPException(400, "not a form of ours")
    return fields


class _Events(Response):
    """A stream that takes its place only when it begins, and gives it back whatever its end."""

    def __init__(self, live: Live, session_id: str, vm_uuid: str, access: Access) -> None:
        super().__init__()
        self._live = live
        self._session_id = session_id
        self._vm_uuid = vm_uuid
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._live.enter(self._session_id):
            await PlainTextResponse("Too Many Requests", 429)(scope, receive, send)
            return
        is_valid = functools.partial(self._access.session, self._session_id)
        events = self._live.stream(self._vm_uuid, lambda: is_valid() is not None)
        try:
            stream = StreamingResponse(events, headers=_UNHELD, media_type="text/event-stream")
            await stream(scope, receive, send)
        finally:
            self._live.leave(self._session_id)
