"""The kinds of values a config has, each read from the text people write and written back to it.

Messages show a wrong value only where it can't be a secret put into the wrong place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, StringConstraints

from drvm.core.units import GIB, KIB, MIB, parse_bytes, parse_seconds

_EXACT_UNITS = ((604800, "w"), (86400, "d"), (3600, "h"), (60, "m"))


def _read_duration(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} needs a unit, such as 90s, 15m, 24h or 7d")
    return parse_seconds(value)


def _read_whole_seconds(value: object) -> int:
    seconds = _read_duration(value)
    if not seconds.is_integer():
        raise ValueError(f"{value!r} is no whole number of seconds")
    return int(seconds)


def duration_text(seconds: float) -> str:
    """``86400`` -> ``1d``; reads back as exactly the same number."""
    for unit_seconds, unit in _EXACT_UNITS:
        if seconds and seconds % unit_seconds == 0:
            return f"{seconds // unit_seconds:.0f}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds:f}s"


def _read_rate(value: object) -> int:
    if not isinstance(value, str) or not value.rstrip().endswith("/s"):
        raise ValueError(f"{value!r} is no rate such as 200 MiB/s")
    rate_bytes = parse_bytes(value.rstrip().removesuffix("/s"))
    if rate_bytes == 0 or rate_bytes % MIB:
        raise ValueError(f"{value!r} is no whole number of MiB/s")
    return rate_bytes // MIB


def _read_size(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} needs a unit, such as 512 MiB")
    return parse_bytes(value)


def size_text(size_bytes: int) -> str:
    """``1073741824`` -> ``1 GiB``; reads back as exactly the same number."""
    for unit_bytes, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes} {unit}"
    return f"{size_bytes} B"


def _read_directory(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be an absolute path such as /srv/drvm")
    if not value.isprintable() or ".." in Path(value).parts:
        raise ValueError("must be an absolute path without '..' and control characters")
    return Path(value)


def repository_url_problem(url: str) -> str | None:
    """The store has the last word; this finds what no store can mean."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is no URL such as s3://bucket/prefix or file:///srv/drvm"
    if not url.isprintable() or " " in url:
        return "has blanks or control characters"
    if parts.username or parts.password or "@" in parts.netloc:
        return "must not hold credentials: use the AWS environment or credentials file"
    if parts.query or parts.fragment:
        return "must not have a query or fragment"
    if parts.scheme == "s3":
        return None if parts.netloc else "names no bucket: s3://BUCKET/PREFIX"
    if parts.scheme == "file":
        absolute = not parts.netloc and parts.path.startswith("/") and parts.path != "/"
        return None if absolute else "names no absolute directory: file:///srv/drvm"
    return "must begin with s3:// or file:///"


def _read_repository_url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a URL such as s3://bucket/prefix or file:///srv/drvm")
    problem = repository_url_problem(value)
    if problem is not None:
        raise ValueError(f"the repository URL {problem}")
    return value


def host_uri_problem(uri: str) -> str | None:
    """libvirt has the last word, but a password in it would stand in every message."""
    try:
        parts = urlsplit(uri)
        password = parts.password
    except ValueError:
        return "is no URI such as qemu:///system"
    if not uri.isprintable() or " " in uri:
        return "has blanks or control characters"
    if password is not None:
        return "must not hold a password: libvirt takes none there (see its auth.conf)"
    return None


def _read_host_uri(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a libvirt URI such as qemu:///system")
    problem = host_uri_problem(value)
    if problem is not None:
        raise ValueError(f"the libvirt URI {problem}")
    return value


def _read_endpoint(value: object) -> str:
    if isinstance(value, str) and value.isprintable():
        try:
            parts = urlsplit(value)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host and "@" not in value and parts.scheme in ("http", "https") and port != 0:
            return value
    raise ValueError("must be an endpoint such as https://s3.example.org:9000, without credentials")


def _read_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return value


def matching(expression: str, words: str) -> AfterValidator:
    """A whole text that matches; ``words``: what it must be, for people."""
    form = re.compile(expression)

    def check(value: str) -> str:
        if form.fullmatch(value) is None:
            raise ValueError(f"must be {words}")
        return value

    return AfterValidator(check)


_AS_DURATION = PlainSerializer(duration_text)
_AS_TEXT = PlainSerializer(str)

Duration = Annotated[float, BeforeValidator(_read_duration), Field(gt=0, le=10 * 366 * 86400)]
DurationText = Annotated[Duration, _AS_DURATION]
WholeSeconds = Annotated[int, BeforeValidator(_read_whole_seconds), _AS_DURATION, Field(ge=1)]
RateMibPerSecond = Annotated[
    int, BeforeValidator(_read_rate), PlainSerializer(lambda mib: f"{mib} MiB/s")
]
SizeBytes = Annotated[int, BeforeValidator(_read_size), PlainSerializer(size_text)]
AbsolutePath = Annotated[Path, BeforeValidator(_read_directory), _AS_TEXT]
RepositoryUrl = Annotated[str, BeforeValidator(_read_repository_url)]
HostUri = Annotated[str, BeforeValidator(_read_host_uri), Field(max_length=1000)]
Endpoint = Annotated[str, BeforeValidator(_read_endpoint)]
Pattern = Annotated[str, BeforeValidator(_read_pattern), Field(max_length=1000)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Name = Annotated[
    str,
    matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', 64 at most"),
]
