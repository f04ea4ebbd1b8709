"""Text from outside (guests, stores, files), made safe to show to people."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that terminals act upon or that hide or reorder what is around them."""


def printable(text: str, max_chars: int = 4000, *, lines: bool = False) -> str:
    """``text`` with every control, format, surrogate and unassigned character written out as
    ``\\x1b`` or ``\\u202e``, cut after ``max_chars`` characters of the input.

    With ``lines`` line feeds stay, and tabs become spaces.
    """
    kept = text[:max_chars]
    if lines:
        kept = kept.replace("\r\n", "\n").expandtabs(8)
    shown = "".join(
        character
        if _is_harmless(character) or (lines and character == "\n")
        else _escape(character)
        for character in kept
    )
    left_out = len(text) - max_chars
    return shown if left_out <= 0 else f"{shown}… ({left_out} more characters)"


def _is_harmless(character: str) -> bool:
    return " " <= character <= "~" or unicodedata.category(character) not in _HIDDEN


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
