"""The connection to one libvirtd: reopened when it was lost, its errors in drvm's own words."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from drvm.core.errors import AgentError, HostError, HostUnreachable, UnknownVm
from drvm.host.libvirt_events import run_event_loop
from drvm.host.reach import hint_for, is_remote

T = TypeVar("T")

_AGENT_CODES = frozenset(
    {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED}
    | {
        code
        for name in ("VIR_ERR_AGENT_COMMAND_TIMEOUT", "VIR_ERR_AGENT_COMMAND_FAILED")
        if (code := getattr(libvirt, name, None)) is not None
    }
)
_LOST_CODES = frozenset(
    {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_RPC}
)
_DENIED_CODES = frozenset(
    {libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE}
)
_KEEP_ALIVE_S, _KEEP_ALIVE_TIMES = 5, 6
"""A remote host that says nothing for half a minute is lost."""
_OPEN_S = 60
_MAX_MESSAGE_CHARS = 500


class _Line:
    """A connection, whether it is open or not, and how many calls are under way on it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.libvirt: Any = None
        self.calls = 0


class Connection:
    """One libvirtd, reached at the first call. May be used from any thread.

    Threads share one connection to this machine. Of another machine each has its own: libvirt 9.0
    uses freed memory where a keep-alive ends a connection that two threads wait on. A process
    that was forked opens its own: the event loop of its parent would take the answers to it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}
        self._process = os.getpid()
        self._inherited: list[dict[int, _Line]] = []  # kept: their end would close the parent's

    def call(self, work: Callable[[Any], T], *, repeatable: bool) -> T:
        """``work`` on an open ``virConnect``.

        A connection that was lost before the call is opened anew. One that is lost during the
        call is opened anew too, and the work is done a second time if it is ``repeatable``;
        else, as nobody knows whether it was done, ``HostUnreachable`` is raised.
        """
        try:
            return self._do(work)
        except libvirt.libvirtError as problem:
            if not self._is_lost(problem) or not repeatable:
                raise self._translated(problem) from None
        try:
            return self._do(work)
        except libvirt.libvirtError as problem:
            raise self._translated(problem) from None

    def close(self) -> None:
        """What another thread is in a call on closes when that ends: else libvirt would crash."""
        with self._lock:
            self._leave_inherited()
            idle = [line.libvirt for line in self._lines.values() if not line.calls]
            self._lines = {}
        for connection in idle:
            if connection is not None:
                _close_quietly(connection)

    def _line(self) -> _Line:
        self._leave_inherited()
        key = threading.get_ident() if is_remote(self.uri) else 0
        return self._lines.setdefault(key, _Line())

    def _leave_inherited(self) -> None:
        if self._process != os.getpid():
            self._inherited.append(self._lines)
            self._lines, self._process = {}, os.getpid()

    def _open(self, line: _Line) -> Any:
        with line.lock:
            if line.libvirt is not None and not _is_alive(line.libvirt):
                line.libvirt = None  # not closed: another thread may be in a call
            if line.libvirt is None:
                try:
                    line.libvirt = _opened(self.uri)
                except libvirt.libvirtError as problem:
                    raise self._unreachable(problem) from None
            return line.libvirt

    def _do(self, work: Callable[[Any], T]) -> T:
        with self._lock:
            line = self._line()
            line.calls += 1
        try:
            return work(self._open(line))
        except (SystemError, UnicodeError):
            # libvirt-python can't make text of an answer, or of an error that quotes a guest
            raise HostError("libvirt's answer is not text") from None
        finally:
            with self._lock:
                line.calls -= 1

    def _is_lost(self, problem: Any) -> bool:
        with self._lock:
            line = self._line()
        with line.lock:
            return line.libvirt is not None and (
                problem.get_error_code() in _LOST_CODES or not _is_alive(line.libvirt)
            )

    def _unreachable(self, problem: Any) -> HostUnreachable:
        return HostUnreachable(
            f"no connection to libvirt at {self.uri}: {_text(problem)}",
            hint=hint_for(self.uri, _text(problem)),
        )

    def _translated(self, problem: Any) -> HostError | UnknownVm:
        code = problem.get_error_code()
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            return UnknownVm(_text(problem), hint="virsh list --all shows the machines there are")
        if code in _DENIED_CODES or self._is_lost(problem):
            return self._unreachable(problem)
        if code in _AGENT_CODES or "agent" in _text(problem).lower():
            return AgentError(_text(problem))
        return HostError(_text(problem))


def _opened(uri: str) -> Any:
    if not is_remote(uri):
        return libvirt.open(uri)
    run_event_loop()
    connection = _opened_in_time(uri)
    connection.setKeepAlive(_KEEP_ALIVE_S, _KEEP_ALIVE_TIMES)
    return connection


def _opened_in_time(uri: str) -> Any:
    """A host that takes the connection and then says nothing would be waited for without end. A
    thread waits for it, and is left behind."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(libvirt.open(uri))
        except libvirt.libvirtError as problem:
            answers.put(problem)

    threading.Thread(target=ask, name="libvirt-open", daemon=True).start()
    try:
        answer = answers.get(timeout=_OPEN_S)
    except queue.Empty:
        words = f"it said nothing for {_OPEN_S} s"
        raise HostUnreachable(
            f"no connection to libvirt at {uri}: {words}", hint=hint_for(uri, "timed out")
        ) from None
    if isinstance(answer, libvirt.libvirtError):
        raise answer
    return answer


def _text(problem: Any) -> str:
    """libvirt's own words on one line, bounded: they may quote what a guest said."""
    words = " ".join((problem.get_error_message() or "unknown libvirt error").split())
    return words[:_MAX_MESSAGE_CHARS]


def _is_alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close_quietly(connection: Any) -> None:
    try:
        connection.close()
    except libvirt.libvirtError:
        return  # a connection that is lost has nothing left to close


def _keep_silent(_context: object, _error: object) -> None:
    """libvirt prints every error to stderr unless somebody else takes it."""


libvirt.registerErrorHandler(_keep_silent, None)
