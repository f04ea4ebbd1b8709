"""The last fence before logs and messages: values that are known to be secret are blotted out.

Whoever reads a secret (a passphrase, a URL with a token) tells it here at once. Code that keeps
secrets out of texts stays the rule; this is for texts of libraries, stores and servers.
"""

from __future__ import annotations

import base64
import threading
from urllib.parse import quote, urlsplit

BLOT = "[secret]"
_LEAST_CHARS = 6
"""A shorter one would blot out ordinary words, and is hardly a secret."""

_MOST = 200
_lock = threading.Lock()
_known: dict[str, tuple[str, ...]] = {}


def keep_secret(value: str | bytes) -> None:
    """From now on ``redacted`` blots it out in this process, also percent-encoded, as a literal of
    Python's and in base64. The oldest is forgotten where there are very many."""
    text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    if len(text) < _LEAST_CHARS:
        return
    as_base64 = base64.b64encode(text.encode("utf-8", "backslashreplace")).decode().rstrip("=")
    forms = {text, quote(text, safe=""), quote(text), repr(text)[1:-1], as_base64}
    with _lock:
        _known.pop(text, None)
        while len(_known) >= _MOST:
            del _known[next(iter(_known))]
        _known[text] = tuple(sorted(forms, key=len, reverse=True))


def keep_secret_url(url: str) -> None:
    """A URL that is a secret: itself, its credentials, and what stands behind its host."""
    keep_secret(url)
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return
    behind = url.partition("://")[2].partition("/")[2]
    for part in (behind, parts.path, parts.query, password or ""):
        keep_secret(part)
    for segment in parts.path.split("/"):
        if len(segment) >= 2 * _LEAST_CHARS:  # a token, rather than a word
            keep_secret(segment)


def redacted(text: str) -> str:
    """``text`` with ``[secret]`` in the place of each value that is known."""
    with _lock:
        forms = sorted({form for known in _known.values() for form in known}, key=len, reverse=True)
    for form in forms:
        text = text.replace(form, BLOT)
    return text
