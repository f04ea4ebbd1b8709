"""The report as one page that can be mailed, printed and kept: no script, nothing from outside.

Jinja2 escapes everything; control characters are written out before. The page's own policy
(CSP) allows its one style sheet by digest, pictures inside the page, and nothing else.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from drvm.core.text import printable
from drvm.core.units import (
    format_bytes,
    format_coarse_seconds,
    format_round_seconds,
    format_seconds,
)
from drvm.report.drill_views import drill_view as drill_view
from drvm.report.input import ReportInput
from drvm.report.views import overview

MAX_SHOWN_CHARS = 2000

_WORD = r"""(?:'[^']*'|"[^"]*"|[\w@%+=/.:,-]*[\w@%+=/-])+"""
_COMMAND = re.compile(
    rf"\bdrvm (?:(?:backup|drill|restore|run) {_WORD}|[a-z]+(?: [a-z]+(?= --))?(?: --[a-z-]+)*)"
)
"""What hints have (``drvm/report/attention.py``): a verb with one name, or with options."""

_CONSISTENCY = {
    "filesystem": "file-system consistent",
    "crash": "crash-consistent",
    "offline": "taken while off",
}


def html_report(report: ReportInput) -> str:
    style, style_digest = _style()
    template = environment().get_template("report.html.j2")
    return template.render(
        view=overview(report),
        report=report,
        style=Markup(style),  # noqa: S704 - our own file
        style_digest=style_digest,
    )


@cache
def style_sheet() -> str:
    return resources.files(__package__).joinpath("report.css").read_text("utf-8")


@cache
def _style() -> tuple[str, str]:
    """The style sheet, and its digest as the page's policy wants it."""
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return style, digest


@cache
def environment(*more: jinja2.BaseLoader) -> jinja2.Environment:
    """Templates that escape everything, with the report's filters and ``macros.html.j2``; ``more``:
    where else templates are found."""
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*more, jinja2.PackageLoader("drvm.report", ".")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    found.filters |= _FILTERS
    return found


def _shown(value: object) -> object:
    """Every text on its way into a page; ``Markup`` is only what this room made itself."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, MAX_SHOWN_CHARS, lines=True)
    return value


def _moment(value: dt.datetime | None) -> str:
    if value is None:
        return "–"
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _day(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d")


def _minute(value: dt.datetime | None) -> str:
    """Where the zone is said elsewhere."""
    return _moment(value).removesuffix(" UTC")


def _host(uri: str) -> str:
    """A libvirt URI as short as it still says which host."""
    match = re.fullmatch(r"qemu(?:\+\w+)?://([^/]*)/system", uri)
    return uri if match is None else match[1] or "this host"


def _commands(hint: str) -> Markup:
    """``hint`` with the commands in it marked: what is to be typed, and what is only said."""
    hint = printable(hint, MAX_SHOWN_CHARS, lines=True)
    shown: list[Markup] = []
    end = 0
    for match in _COMMAND.finditer(hint):
        shown += [escape(hint[end : match.start()]), Markup("<code>%s</code>") % match[0]]
        end = match.end()
    return Markup("").join([*shown, escape(hint[end:])])


_FILTERS = {
    "commands": _commands,
    "coarse": format_coarse_seconds,
    "host": _host,
    "seconds": lambda value: "–" if value is None else format_seconds(value),
    "round_seconds": format_round_seconds,
    "consistency": lambda value: _CONSISTENCY.get(value, value),
    "bytes": lambda value: f"-{format_bytes(-value)}" if value < 0 else format_bytes(value),
    "moment": _moment,
    "day": _day,
    "minute": _minute,
    "iso": lambda value: value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "percent": lambda value: f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %",
}
