"""``drvm key list|add|change|remove|export|import``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import opened
from drvm.cli.output import Column
from drvm.cli.views import short_time
from drvm.core.clock import rfc3339
from drvm.core.errors import UsageError
from drvm.repository import paper
from drvm.repository.keyring import Slot, from_paper

_MAX_TRIES = 5
_MAX_PAGE_BYTES = 64 * 1024

_new_password = click.option(
    "--new-password-file",
    "new_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The new passphrase; without it drvm asks.",
)
_label = click.option("--label", default="", metavar="TEXT", help="What it is for, or whose.")


@click.group("key")
def command() -> None:
    """The passphrases of the repository, each with a key slot of its own.

    All slots hold the same master keys: to remove one does not help against somebody who has its
    passphrase and a copy of it. See "The day a passphrase leaks" in docs/SECURITY.md.
    """


@command.command("list")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the key slots. Those marked "foreign" were made by nobody who had the keys."""
    with opened(invocation) as wiring:
        slots = wiring.repository().keyring.slots()
    if invocation.output.json:
        invocation.output.document({"slots": [_fields(slot) for slot in slots]})
        return
    columns = [
        Column("slot"),
        Column("label", wraps=True),
        Column("created (UTC)"),
        Column("by"),
        Column("state"),
    ]
    rows = [
        [
            slot.id,
            slot.about.label,
            short_time(slot.about.created),
            slot.about.host,
            f"{slot.state}{', in use' if slot.in_use else ''}",
        ]
        for slot in slots
    ]
    invocation.output.table(columns, rows)


@command.command("add")
@_new_password
@_label
@click.pass_obj
def add(invocation: Invocation, new_file: Path | None, label: str) -> None:
    """Add a passphrase. It is read back from the repository and tried before this ends.

    \b
    Examples:
      drvm key add --label "safe in Hamburg" --new-password-file /root/second
    """
    with opened(invocation) as wiring:
        keyring = wiring.repository().keyring
        new = invocation.new_password(new_file)
        slot_id = keyring.add(new, wiring.about_slot(label), invocation.trace)
    _told(invocation, "added", slot_id)


@command.command("change")
@_new_password
@_label
@click.pass_obj
def change(invocation: Invocation, new_file: Path | None, label: str) -> None:
    """Put a new passphrase in the place of the one in use. Its label stays if none is given.

    The old one goes only after the new one was read back from the repository and tried. If this is
    interrupted both may be left: drvm key list, drvm key remove.
    """
    with opened(invocation) as wiring:
        keyring = wiring.repository().keyring
        old = keyring.slot_in_use
        new = invocation.new_password(new_file)
        label = label or next((row.about.label for row in keyring.slots() if row.in_use), "")
        slot_id = keyring.change(new, wiring.about_slot(label), invocation.trace)
    _told(invocation, f"removed {old}, added", slot_id, removed=old)


@command.command("remove")
@click.argument("slot")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def remove(invocation: Invocation, slot: str, yes: bool) -> None:
    """Remove a passphrase: SLOT is the beginning of its slot's id, or its label.

    The slot by which the repository was opened can't be removed, so that one that works is always
    left.
    """
    with opened(invocation) as wiring:
        keyring = wiring.repository().keyring
        chosen = keyring.find(slot)
        named = f" ({chosen.about.label})" if chosen.about.label else ""
        invocation.confirm(f"remove key slot {chosen.id}{named} for ever?", yes=yes)
        keyring.remove(chosen.id, invocation.trace)
    _told(invocation, "removed", chosen.id, removed=chosen.id)


@command.command("export")
@click.pass_obj
def export(invocation: Invocation) -> None:
    """Print the paper form: a page that opens the repository when every passphrase is lost.

    It holds the keys themselves. Print it, put it in a safe, and leave no copy on any disk.

    \b
    Examples:
      drvm key export | lp
    """
    with opened(invocation) as wiring:
        repository = wiring.repository()
        held = repository.keyring.paper()
        printed = short_time(rfc3339(wiring.clock.now()))
        text = paper.page(held, repository.store.location, f"{printed} UTC")
    if invocation.output.json:
        invocation.output.document(
            {"repository_id": held.repository_id, "lines": paper.lines(held)}
        )
    invocation.output.block(text)


@command.command("import")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_new_password
@_label
@click.pass_obj
def import_(invocation: Invocation, file: Path | None, new_file: Path | None, label: str) -> None:
    """Make a new key slot of the paper form, without any passphrase.

    The six lines are asked for, or read from FILE (- for standard input); whatever else is on the
    page is left out. The passphrase that the settings name is the new one, unless
    --new-password-file names another or there is none: then drvm asks.

    \b
    Examples:
      drvm key import
      drvm key import scanned.txt --new-password-file /etc/drvm/passphrase
    """
    held = paper.read(_lines(invocation, file))
    settings = invocation.settings()
    if new_file is None and settings.password is not None:
        new = invocation.password(settings, confirm=True)
    else:
        new = invocation.new_password(new_file)
    with opened(invocation) as wiring:
        about = wiring.about_slot(label or "of the paper form")
        slot_id = from_paper(wiring.store(), held, new, about, invocation.trace)
    _told(invocation, "added", slot_id)


def _fields(slot: Slot) -> dict[str, Any]:
    return {
        "id": slot.id,
        "label": slot.about.label,
        "created": slot.about.created,
        "host": slot.about.host,
        "state": slot.state,
        "in_use": slot.in_use,
    }


def _told(invocation: Invocation, did: str, slot_id: str, removed: str | None = None) -> None:
    if invocation.output.json:
        added = None if slot_id == removed else slot_id
        invocation.output.document({"added": added, "removed": removed})
    invocation.output.line(f"{did} key slot {slot_id}")


def _lines(invocation: Invocation, file: Path | None) -> list[str]:
    if file is None and invocation.has_terminal:
        return list(_typed(invocation))
    if file is None:
        raise UsageError("which paper form?", hint="drvm key import FILE, or - for standard input")
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_PAGE_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(_MAX_PAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"can't read {file}: {(error.strerror or 'no file').lower()}", hint="name a text file"
        ) from None
    if len(data) > _MAX_PAGE_BYTES:
        raise UsageError(f"{file} is too long to be a paper form", hint="give the six lines only")
    return data.decode(errors="replace").splitlines()


def _typed(invocation: Invocation) -> Iterator[str]:
    """Each line again until it is right."""
    invocation.stderr.write("Type in the six lines of the paper form, each with its check.\n")
    for number in range(1, paper.LINES + 1):
        for _ in range(_MAX_TRIES):
            invocation.stderr.write(f"{number}: ")
            invocation.stderr.flush()
            text = sys.stdin.readline(200).strip()
            problem = paper.line_problem(number, text)
            if not problem:
                break
            invocation.stderr.write(f"   not right: {problem}. Once more.\n")
        else:
            raise UsageError(f"line {number} was not right {_MAX_TRIES} times: {problem}")
        yield paper.numbered(number, text)
