"""Who may look and act: one token, the sessions that it opens, and what wrong tries cost.

Sessions live in memory only, by the digest of their id: a restart of the daemon ends them all, and
a page never shows one. All answers are calls of the event loop's thread or of its workers.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drvm.config.password import read_private_line, weakness
from drvm.core.errors import UsageError

MAX_SESSIONS = 32
SESSION_S = 12 * 3600.0
TRIES = 8
TRY_AGAIN_S = 8.0
"""So many wrong tokens at once, then one in so many seconds, from whomever: on loopback nobody has
an address of his own. Sessions that are open go on meanwhile."""

LEAST_CHARS = 20


def read_token(path: Path) -> str:
    """The one line of a file that is closed to others. Raises ``UsageError``."""
    token = read_private_line(path, f"the dashboard's token file {path}")
    reason = weakness(token) or (
        f"it is shorter than {LEAST_CHARS} characters" if len(token) < LEAST_CHARS else ""
    )
    if not reason and not (token.isascii() and token.decode("ascii").isprintable()):
        reason = "it holds other characters than printable ASCII"
    if reason:
        raise UsageError(
            f"the token in {path} is too weak for the dashboard: {reason}",
            hint=f"(umask 077; openssl rand -hex 24 > {path})",
        )
    return token.decode("ascii")


@dataclass(frozen=True, slots=True)
class Session:
    """``csrf``: what each form of this session carries. ``ends_s``: monotonic."""

    csrf: str
    ends_s: float


class Access:
    """``monotonic_s``: seconds that only grow."""

    def __init__(self, token: str, monotonic_s: Callable[[], float]) -> None:
        self._digest = _digest(token)
        self._monotonic_s = monotonic_s
        self._sessions: dict[bytes, Session] = {}
        self._tries = float(TRIES)
        self._counted_s = monotonic_s()
        self._lock = threading.Lock()

    def log_in(self, token: str) -> str | None:
        """The id of a new session, ``None`` for a wrong token. The oldest one ends where there
        are too many. Raises ``TooManyTries``."""
        if not self.is_token(token):
            return None
        session_id = secrets.token_urlsafe(32)
        with self._lock:
            self._forget_ended()
            while len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            ends_s = self._monotonic_s() + SESSION_S
            self._sessions[_digest(session_id)] = Session(secrets.token_urlsafe(32), ends_s)
        return session_id

    def is_token(self, token: str) -> bool:
        """In a time that says nothing about the token. Raises ``TooManyTries``."""
        with self._lock:
            self._refill()
            if self._tries < 1:
                raise TooManyTries
            if hmac.compare_digest(_digest(token), self._digest):
                return True
            self._tries -= 1
        return False

    def session(self, session_id: str) -> Session | None:
        with self._lock:
            session = self._sessions.get(_digest(session_id))
        return session if session is not None and session.ends_s > self._monotonic_s() else None

    def log_out(self, session_id: str) -> None:
        with self._lock:
            self._sessions.pop(_digest(session_id), None)

    def _forget_ended(self) -> None:
        now_s = self._monotonic_s()
        for ended in [key for key, held in self._sessions.items() if held.ends_s <= now_s]:
            del self._sessions[ended]

    def _refill(self) -> None:
        now_s = self._monotonic_s()
        self._tries = min(TRIES, self._tries + (now_s - self._counted_s) / TRY_AGAIN_S)
        self._counted_s = now_s


class TooManyTries(Exception):
    """Not even the right token is looked at for ``TRY_AGAIN_S``."""


def same_text(one: str, other: str) -> bool:
    return hmac.compare_digest(_digest(one), _digest(other))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
