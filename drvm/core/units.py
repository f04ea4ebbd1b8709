"""Numbers for people. Binary units for bytes, as every disk tool prints them."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|K|M|G|T)?\s*", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def format_bytes(count: int) -> str:
    """``1536`` -> ``1.5 KiB``."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def parse_bytes(text: str) -> int:
    """``"32 MiB"`` -> 33554432; ``K``, ``M``, ``G``, ``T`` are binary too. Else ``ValueError``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512 MiB")
    power = "BKMGT".index((match[2] or "B")[0])
    return int(float(match[1]) * 1024**power)


def format_seconds(seconds: float) -> str:
    """``4.25`` -> ``4.2 s``; ``3723`` -> ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


def format_coarse_seconds(seconds: float) -> str:
    """As one says how long something lasts: ``3 h 12 min``, ``30 h``, ``5 d``."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 10 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds // 86400:.0f} d"


def format_round_seconds(seconds: float) -> str:
    """As targets are written: ``15 min``, not ``15 min 00 s``."""
    return re.sub(r" 00 \w+$|\.0(?= s$)", "", format_seconds(seconds))


def parse_seconds(text: str) -> float:
    """``"90s"``, ``"15m"``, ``"24h"``, ``"1d12h"`` -> seconds. Else ``ValueError``."""
    compact = text.replace(" ", "")
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a duration such as 15m or 1d12h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
