"""How ``drvm files`` tells what it found and did."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from drvm.cli.invocation import Invocation
from drvm.cli.output import Column
from drvm.core.clock import rfc3339
from drvm.core.units import format_bytes
from drvm.repository.manifest import Manifest
from drvm.restore.guestfiles.fetch import Fetched, FetchPlan
from drvm.restore.guestfiles.names import Place, shown_name
from drvm.restore.guestfiles.view import Found
from drvm.restore.guestfiles.wire import Entry

_MOST_WARNINGS = 20
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def show_found(invocation: Invocation, manifest: Manifest, found: Found) -> None:
    output = invocation.output
    if output.json:
        output.document(
            {
                "point": manifest.id,
                "vm": manifest.vm,
                "systems": found.systems,
                "file_systems": found.file_systems,
            }
        )
        return
    for system in found.systems:
        host = f", host name {system.hostname}" if system.hostname else ""
        output.line(f"{system.product or system.type} on {system.root}{host}")
    titles = ("device", "type", "size", "label", "mounted at")
    output.table(
        [Column(title, right=title == "size") for title in titles],
        [
            [
                fs.device,
                f"{fs.type} (encrypted)" if fs.encrypted else fs.type,
                "" if fs.size_bytes is None else format_bytes(fs.size_bytes),
                fs.label,
                " ".join(fs.mount_points),
            ]
            for fs in found.file_systems
        ],
    )


def show_entries(
    invocation: Invocation,
    manifest: Manifest,
    place: Place,
    listed: Iterator[tuple[Place, Entry]],
    problems: Sequence[str],
    *,
    as_table: bool,
) -> None:
    output = invocation.output
    if output.json:
        entries = [entry_fields(inner, entry) for inner, entry in listed]
        output.document(
            {
                "point": manifest.id,
                "vm": manifest.vm,
                "path": str(place),
                "entries": entries,
                "problems": problems,
            }
        )
    elif as_table:
        columns = [Column(title, right=title == "bytes") for title in ("mode", "owner", "bytes")]
        columns += [Column("modified (UTC)"), Column("name", wraps=True)]
        output.table(columns, [_row(inner, entry, place) for inner, entry in listed])
    else:
        for inner, _ in listed:
            output.line(_relative(inner, place))


def _row(inner: Place, entry: Entry, place: Place) -> list[str]:
    name = _relative(inner, place)
    if entry.target is not None:
        name += f" -> {shown_name(entry.target)}"
    moment = (_moment(entry) or "").replace("T", " ").partition(".")[0]
    owner = f"{entry.uid}:{entry.gid}"
    return [stat.filemode(entry.mode), owner, str(entry.size_bytes), moment, name]


def _relative(inner: Place, place: Place) -> str:
    rest = inner.path[len(place.path.rstrip(b"/")) + 1 :]
    return shown_name(rest or inner.name)


def entry_fields(place: Place, entry: Entry) -> dict[str, Any]:
    """``path_base64``: where the path is no UTF-8, and ``path`` can't be told from another."""
    try:
        place.path.decode()
        encoded = None
    except UnicodeDecodeError:
        encoded = base64.b64encode(place.path).decode()
    return {
        "path": str(place),
        "path_base64": encoded,
        "type": kind_of(entry),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "size_bytes": entry.size_bytes,
        "used_bytes": entry.used_bytes,
        "uid": entry.uid,
        "gid": entry.gid,
        "modified": _moment(entry),
        "target": None if entry.target is None else shown_name(entry.target),
    }


def warn_of(invocation: Invocation, what: str, lines: Sequence[str]) -> None:
    """The first of them: JSON has all."""
    for line in lines[:_MOST_WARNINGS]:
        invocation.warn(f"{what}: {line}")
    if len(lines) > _MOST_WARNINGS:
        invocation.warn(f"{what}: {len(lines) - _MOST_WARNINGS} more, which --json names")


def kind_of(entry: Entry) -> str:
    return _KINDS.get(stat.S_IFMT(entry.mode), "unknown")


def _moment(entry: Entry) -> str | None:
    """``None`` for times that no calendar has."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return rfc3339(dt.datetime.fromtimestamp(entry.mtime_s, dt.UTC))
    return None


def show_plan(
    invocation: Invocation, manifest: Manifest, plan: FetchPlan, problems: Sequence[str]
) -> None:
    if invocation.output.json:
        fields = {
            "point": manifest.id,
            "output": plan.output,
            "items": len(plan.items),
            "size_bytes": plan.size_bytes,
            "need_bytes": plan.need_bytes,
            "left_out": plan.left_out,
            "problems": problems,
        }
        invocation.output.document({"plan": fields})
        return
    size = format_bytes(plan.size_bytes)
    line = f"{manifest.vm}, point {manifest.id}, to {plan.output}: {len(plan.items)} items, {size}"
    invocation.output.line(line)
    for item in plan.items:
        invocation.output.line(f"  {item.place}")


def show_fetched(
    invocation: Invocation,
    manifest: Manifest,
    plan: FetchPlan,
    fetched: Fetched,
    problems: Sequence[str],
) -> None:
    warn_of(invocation, "not fetched", fetched.failed)
    if invocation.output.json:
        fields = {
            "point": manifest.id,
            "output": plan.output,
            "files": fetched.files,
            "directories": fetched.directories,
            "links": fetched.links,
            "written_bytes": fetched.written_bytes,
            "left_out": plan.left_out,
            "failed": fetched.failed,
            "problems": problems,
        }
        invocation.output.document({"fetched": fields})
        return
    size = format_bytes(fetched.written_bytes)
    invocation.output.line(
        f"fetched {fetched.files} files, {fetched.directories} directories and {fetched.links} "
        f"links of {manifest.vm}, point {manifest.id}: {size} written to {plan.output}"
    )
