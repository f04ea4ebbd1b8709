"""Colours that people can read: WCAG 2 asks for a contrast of 4.5 for text, and of 3 for what
pictures show."""

from __future__ import annotations

import re

import pytest

from drvm.report.html import style_sheet

TEXT = [
    ("ink", "page"), ("ink", "sheet"), ("soft", "page"), ("soft", "sheet"), ("soft", "bar-wash"),
    ("good", "good-wash"), ("bad", "bad-wash"), ("warn", "warn-wash"), ("good", "sheet"),
    ("bad", "sheet"), ("warn", "sheet"), ("ink", "bar-wash"), ("sheet", "bar"), ("bar", "sheet"),
]  # fmt: skip
DRAWN = [
    ("soft", "sheet"),
    ("bar", "sheet"),
    ("line", "sheet"),
    ("good", "sheet"),
    ("bad", "sheet"),
    ("line", "bar-wash"),
]


def palettes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", style_sheet(), re.DOTALL)
    return {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", block))
        for name, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_is_the_known_one() -> None:
    assert contrast("#fff", "#000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_text_and_drawings_stand_out(name: str) -> None:
    palette = palettes()[name]
    for pairs, least in ((TEXT, 4.5), (DRAWN, 3.0)):
        for front, back in pairs:
            found = contrast(palette[front], palette[back])
            assert found >= least, f"{front} on {back}: {found:.2f}"
