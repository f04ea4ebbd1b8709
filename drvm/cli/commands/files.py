"""``drvm files ls|cat|get``."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import fnmatch
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from drvm.cli.files_view import (
    entry_fields,
    kind_of,
    show_entries,
    show_fetched,
    show_found,
    show_plan,
    warn_of,
)
from drvm.cli.invocation import DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.config.settings import Overrides
from drvm.core.errors import RestoreError, UsageError
from drvm.core.units import MIB, format_bytes
from drvm.repository.manifest import Manifest
from drvm.restore.guestfiles.appliance import appliance
from drvm.restore.guestfiles.fetch import MAX_ITEMS, plan_fetch, run_fetch
from drvm.restore.guestfiles.names import Place, parse_place
from drvm.restore.guestfiles.view import GuestFiles, below
from drvm.restore.guestfiles.wire import Entry
from drvm.restore.served.supervised import serving
from drvm.wiring.assembly import Wiring
from drvm.wiring.serving import service_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_JSON_BYTES = 16 * MIB


@click.group("files")
def command() -> None:
    """List, read and copy the files inside a recovery point, without restoring it.

    Nothing of the guest is mounted on this machine: its file systems are read in a small virtual
    machine (libguestfs), which sees the point read-only and takes some seconds to start.

    PATH is as the guest sees it (/etc/hosts), or DEVICE:PATH for one of its file systems alone
    (/dev/vda1:/etc/hosts, /dev/vg/root:/etc/hosts). `drvm files ls POINT` shows the devices.

    \b
    Examples:
      drvm files ls web1
      drvm files ls web1@2026-11-23T04:00 /var/log -l
      drvm files cat web1 /etc/fstab
      drvm files get web1 /etc /var/www --output /srv/rescue
    """


@dataclass(frozen=True, slots=True)
class _Opened:
    wiring: Wiring
    manifest: Manifest
    guest: GuestFiles


def _options(function: Decorated) -> Decorated:
    disk = click.option(
        "--disk", multiple=True, metavar="TARGET", help="Only this one, such as vda; repeatable."
    )
    return disk(at_time(function))


@contextlib.contextmanager
def _guest(
    invocation: Invocation, point: str, disk: tuple[str, ...], as_of: dt.datetime | None
) -> Iterator[_Opened]:
    """The point's disks served, and the appliance that reads them."""
    settings = invocation.environ.get("LIBGUESTFS_BACKEND_SETTINGS", "")
    with contextlib.ExitStack() as stack:
        wiring = stack.enter_context(opened(invocation, Overrides(as_of=as_of)))
        chosen = chosen_point(invocation, wiring, point)
        with invocation.progress() as progress:
            progress.stage("starting the appliance that reads the guest's file systems")
            service = service_of(wiring, chosen, disk or None)
            served = stack.enter_context(serving(wiring.processes, wiring.clock, service))
            running = stack.enter_context(
                appliance(
                    wiring.processes,
                    wiring.clock,
                    served.socket,
                    tuple(served.exports.values()),
                    emulated="force_tcg" in settings.split(":"),
                    trace=invocation.trace,
                )
            )
        yield _Opened(wiring, chosen.manifest, GuestFiles(running, tuple(served.exports)))


@command.command("ls")
@click.argument("point")
@click.argument("path", required=False)
@click.option("-l", "--long", "as_table", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("--recursive", is_flag=True, help="All below the directory.")
@click.option("--match", metavar="PATTERN", help="Only names like this, such as '*.conf'.")
@_options
@click.pass_obj
def ls(
    invocation: Invocation,
    point: str,
    path: str | None,
    as_table: bool,
    recursive: bool,
    match: str | None,
    disk: tuple[str, ...],
    as_of: dt.datetime | None,
) -> int:
    """List a directory inside a recovery point; without PATH, its file systems.

    \b
    Examples:
      drvm files ls web1
      drvm files ls web1 /etc -l
      drvm files ls web1 /dev/vda2:/ --recursive --match '*.conf' --json
    """
    place = None if path is None else parse_place(os.fsencode(path))
    if place is None and (recursive or match or as_table):
        raise UsageError("these options need a PATH", hint="such as /")
    with _guest(invocation, point, disk, as_of) as there:
        if place is None:
            show_found(invocation, there.manifest, there.guest.found())
        else:
            listed = _listed(there.guest, place, recursive=recursive, match=match)
            problems = there.guest.problems
            show_entries(invocation, there.manifest, place, listed, problems, as_table=as_table)
        return _code(invocation, there)


@command.command("cat")
@click.argument("point")
@click.argument("path")
@_options
@click.pass_obj
def cat(
    invocation: Invocation,
    point: str,
    path: str,
    disk: tuple[str, ...],
    as_of: dt.datetime | None,
) -> int:
    """Write a file inside a recovery point to standard output, byte by byte.

    On a terminal control characters are written out.

    \b
    Examples:
      drvm files cat web1 /etc/fstab
      drvm files cat web1 /dev/vda1:/var/log/syslog.1.gz | zcat
    """
    place = parse_place(os.fsencode(path))
    with _guest(invocation, point, disk, as_of) as there:
        entry = there.guest.entry(place)
        if not stat.S_ISREG(entry.mode):
            kind = kind_of(entry)
            raise UsageError(
                f"{place} is a {kind}, no file", hint="drvm files ls lists directories"
            )
        chunks = there.guest.read(place, entry.size_bytes)
        if not invocation.output.json:
            invocation.output.content(chunks)
            return _code(invocation, there)
        if entry.size_bytes > _JSON_BYTES:
            raise UsageError(
                f"{place} has {format_bytes(entry.size_bytes)}, too much for a JSON document",
                hint="drvm files get writes it into a directory",
            )
        content = base64.b64encode(b"".join(chunks)).decode()
        fields = {**entry_fields(place, entry), "content_base64": content}
        invocation.output.document({"point": there.manifest.id, "file": fields})
        return _code(invocation, there)


@command.command("get")
@click.argument("point")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Where to; made where it is not there.",
)
@click.option("--preserve", is_flag=True, help="With the guest's owners and modes.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@_options
@click.pass_obj
def get(
    invocation: Invocation,
    point: str,
    paths: tuple[str, ...],
    output: Path,
    preserve: bool,
    dry_run: bool,
    disk: tuple[str, ...],
    as_of: dt.datetime | None,
) -> int:
    """Copy files and directories out of a recovery point into a directory of this machine.

    Nothing is overwritten and nothing is written outside DIR: devices, and symbolic links that
    could lead out, are left out and named. Programs lose the bits that make them run as somebody
    else. Holes stay holes.

    \b
    Examples:
      drvm files get web1 /etc/postgresql --output /srv/rescue
      drvm files get web1@2026-11-23T04:00 /dev/vg/data:/ --output /srv/rescue --preserve
    """
    places = [parse_place(os.fsencode(path)) for path in paths]
    with _guest(invocation, point, disk, as_of) as there:
        plan = plan_fetch(there.guest, places, output.absolute())
        warn_of(invocation, "left out", plan.left_out)
        if dry_run:
            show_plan(invocation, there.manifest, plan, there.guest.problems)
            return _code(invocation, there, bool(plan.left_out))
        with invocation.progress() as progress:
            fetched = run_fetch(plan, there.guest, progress, preserve=preserve)
        show_fetched(invocation, there.manifest, plan, fetched, there.guest.problems)
        code = _code(invocation, there, bool(plan.left_out))
        return 1 if fetched.failed else code


def _code(invocation: Invocation, there: _Opened, warned: bool = False) -> int:
    warn_of(invocation, "not seen", there.guest.problems)
    return DONE_WITH_WARNINGS if there.guest.problems or warned else ending(there.wiring)


def _listed(
    guest: GuestFiles, place: Place, *, recursive: bool, match: str | None
) -> Iterator[tuple[Place, Entry]]:
    entry = guest.entry(place)
    if not stat.S_ISDIR(entry.mode):
        found: Iterator[tuple[Place, Entry]] = iter([(place, entry)])
    elif recursive:
        found = guest.walk(place, targets=True)
    else:
        found = ((below(place, e.name), e) for e in guest.entries(place, targets=True))
    pattern = None if match is None else os.fsencode(match)
    number = 0
    for inner, told in found:
        if pattern is None or fnmatch.fnmatchcase(told.name, pattern):
            number += 1
            if number > MAX_ITEMS:
                raise RestoreError(
                    f"more than {MAX_ITEMS} files", hint="list one directory after the other"
                )
            yield inner, told
