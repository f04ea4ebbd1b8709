"""What programs and guests wrote, cut to what a person reads."""

from __future__ import annotations

_SHOWN_CHARS = 800


def shown(exit_code: int, stdout: bytes, stderr: bytes) -> list[str]:
    """The end of a stream is where errors stand; the beginning is where answers do."""
    lines = [f"exit code {exit_code}"]
    for title, stream in (("", stdout), ("stderr: ", stderr)):
        text = stream.decode(errors="replace").strip()
        if len(text) > _SHOWN_CHARS:
            text = f"{text[: _SHOWN_CHARS // 2]}\n...\n{text[-_SHOWN_CHARS // 2 :]}"
        if text:
            lines.append(title + text)
    return lines
