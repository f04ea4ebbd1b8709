"""``drvm report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import check_place, opened
from drvm.core.errors import UsageError
from drvm.core.files import publish
from drvm.report.html import html_report
from drvm.report.input import ReportInput
from drvm.report.json_report import json_report, report_fields
from drvm.report.junit import junit_report
from drvm.wiring.reporting import gather_report, latest_runs


@click.command("report")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where it goes.  [default: stdout]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["html", "json", "junit"]),
    help="Default: by the file's suffix (.html, .json, .xml), else html.",
)
@click.pass_obj
def command(
    invocation: Invocation, output: Path | None, kind: Literal["html", "json", "junit"] | None
) -> None:
    """Write the report: how each VM is protected, and what drills proved and did not.

    The HTML page begins with what needs attention first. It holds everything in itself, pictures
    included, needs no script, and prints whole. What jobs did is told by the daemon's record on
    this host; growth of storage by what reports of this host saw before. A file that is there is
    replaced as a whole, and keeps its mode: a web server may be showing it.

    JUnit says how things are now: a suite for the latest drill of each VM, and a case for the
    latest run of each job and VM. All drills there were are in the JSON.

    \b
    Examples:
      drvm report --output /srv/www/recovery.html
      drvm report --format junit --output drills.xml
      drvm report --json | jq '.vms[] | select(.rpo_state == "missed")'
      drvm report --json | jq -r '.attention[] | [.severity, .vm, .text] | @tsv'
    """
    suffixes: dict[str, Literal["html", "json", "junit"]] = {".json": "json", ".xml": "junit"}
    if invocation.output.json and output is None and kind in ("html", "junit"):
        raise UsageError(f"--json and --format {kind} exclude each other", hint="add --output FILE")
    if kind is None:
        kind = suffixes.get(output.suffix, "html") if output is not None else "html"
    if output is None and kind == "html" and not invocation.output.json and sys.stdout.isatty():
        raise UsageError(
            "the report is a page of HTML, which nobody reads on a terminal",
            hint="add --output FILE.html, or --format json",
        )
    if output is not None:
        check_place(output.absolute())
    wants_page = kind == "html" and not (invocation.output.json and output is None)
    with opened(invocation) as wiring:
        report = gather_report(wiring, latest_runs(wiring), pictures=wants_page)
    for problem in report.problems:
        invocation.warn(problem)
    if output is None and invocation.output.json:
        invocation.output.document(report_fields(report))
        return
    data = _rendered(report, kind)
    if output is None:
        invocation.output.block(data.decode())
        return
    publish(output, data)
    if invocation.output.json:
        invocation.output.document({"report": output.absolute(), "format": kind})
    else:
        invocation.output.line(f"report: {output.absolute()}")


def _rendered(report: ReportInput, kind: Literal["html", "json", "junit"]) -> bytes:
    if kind == "html":
        return html_report(report).encode()
    return json_report(report) if kind == "json" else junit_report(report)
