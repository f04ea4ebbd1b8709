"""What a look at something found: by a probe, by ``doctor``, by a clean-up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """``detail`` is one line for people; ``hint`` says what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
