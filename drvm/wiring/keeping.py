"""Points that work of this host needs until its end, kept from prune meanwhile by a pin.

A note in ``pins/NONCE.json`` of the state directory is written before the pin is made, removed
after it, and locked by who works. So a pin that a crash leaves is known by its note: ``drvm
doctor`` tells, and the next such work, ``doctor --fix`` and the daemon's start take it off. While a
machine is half turned back to a point, that is needed though nobody works.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from drvm.core.clock import rfc3339
from drvm.core.errors import CaptureError, DrvmError, RestoreError, StoreRefused, UnknownPoint
from drvm.core.files import remove_durably, sync_directory
from drvm.core.findings import Finding
from drvm.core.ids import is_point_id, is_uuid
from drvm.core.progress import Trace, no_trace
from drvm.repository.manifest import Manifest
from drvm.repository.pins import Pin, new_nonce
from drvm.snapshot.locks import try_lock
from drvm.snapshot.rollbacks import Rollbacks
from drvm.wiring.assembly import Wiring

_MAX_BYTES = 65536
_TRIES = 5


class _Note(msgspec.Struct, frozen=True):
    """``repository``: its id; ``location``: for people. ``work``: what needs the point."""

    repository: str
    location: str
    point: str
    vm_uuid: str
    nonce: str
    work: str


@contextlib.contextmanager
def kept(
    wiring: Wiring, manifest: Manifest, work: str, trace: Trace = no_trace
) -> Iterator[tuple[str, ...]]:
    """The point stays, whatever the rules of its policy say, for as long as the context lasts, and
    afterwards while its machine is half turned back to it. Gives what is to be warned of: where the
    repository can only be read, there is no pin. Raises ``RestoreError`` where no note can be
    written, ``UnknownPoint``, and the store's errors."""
    let_go(wiring)
    repository = wiring.repository()
    listed = repository.points(manifest.vm_uuid).points
    point = next((one for one in listed if one.id == manifest.id), None)
    if point is None:
        raise UnknownPoint(f"point {manifest.id} was removed meanwhile", hint="drvm points")
    note = _Note(
        repository=repository.id,
        location=repository.store.location,
        point=manifest.id,
        vm_uuid=manifest.vm_uuid,
        nonce=new_nonce(),
        work=work,
    )
    path, note, descriptor = _noted(wiring, note)
    try:
        trace("point-noted")
        told: tuple[str, ...] = ()
        try:
            pin = Pin(work, rfc3339(wiring.clock.now()), wiring.writer)
            repository.pin(point, pin, nonce=note.nonce)
        except StoreRefused as problem:
            words = f"point {point.id} could not be pinned: {problem.message}"
            told = (f"{words}; see to it that nobody removes it meanwhile",)
        trace("point-pinned")
        yield told
    finally:
        if not _is_needed(wiring, note):
            with contextlib.suppress(DrvmError, OSError):  # then its note tells of it
                _take_off(wiring, path, note)
                let_go(wiring)  # an earlier try's, which this one has ended
        os.close(descriptor)


def let_go(wiring: Wiring) -> list[Finding]:
    """Take off what dead work has left, where nothing needs it; a finding for each."""
    done = []
    with contextlib.ExitStack() as held:
        for path, note in _dead(wiring, held, sweep=True):
            name = f"pin of point {note.point}"
            try:
                if wiring.repository().id != note.repository:
                    done.append(Finding(name, False, *_elsewhere(note)))
                    continue
                words = _take_off(wiring, path, note) or f"taken off: {note.work} has ended"
                done.append(Finding(name, True, words))
            except DrvmError as problem:
                done.append(Finding(name, False, problem.message, problem.hint))
    return done


def left_pins(wiring: Wiring) -> list[Finding]:
    """What ``let_go`` would take off. Changes nothing."""
    with contextlib.ExitStack() as held:
        return [
            Finding(
                f"pin of point {note.point}",
                False,
                f"{note.work} was killed; the point is kept in {note.location} for nothing",
                "drvm doctor --fix takes it off",
            )
            for _, note in _dead(wiring, held)
        ]


def _directory(wiring: Wiring) -> Path:
    return Path(wiring.settings.state_dir) / "pins"


def _noted(wiring: Wiring, note: _Note) -> tuple[Path, _Note, int]:
    """With the descriptor that holds it; under another nonce where somebody looked just as it was
    made. Raises ``RestoreError``, having left no note."""
    for _ in range(_TRIES):
        path = _directory(wiring) / f"{note.nonce}.json"
        try:
            descriptor = try_lock(path)
            if descriptor is not None:
                if _write(descriptor, path, note):
                    return path, note, descriptor
                os.close(descriptor)
        except OSError as problem:
            raise RestoreError(
                f"{path} can't be written: {problem.strerror or problem}", hint="see to state_dir"
            ) from None
        note = msgspec.structs.replace(note, nonce=new_nonce())
    raise RestoreError(f"no note can be made in {_directory(wiring)}", hint="try again")


def _write(descriptor: int, path: Path, note: _Note) -> bool:
    """Whether it is there, durable. Raises ``OSError``; then there is none."""
    try:
        data = msgspec.json.encode(note)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
        sync_directory(path.parent)
        return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise


def _dead(
    wiring: Wiring, held: contextlib.ExitStack, *, sweep: bool = False
) -> Iterator[tuple[Path, _Note]]:
    """Those that nobody works for any more, and nothing needs; locked until ``held`` ends.
    ``sweep``: such as a crash left empty go."""
    for path in sorted(_directory(wiring).glob("*.json")):
        try:
            descriptor = try_lock(path)
        except OSError:
            continue
        if descriptor is None:
            continue
        held.callback(os.close, descriptor)
        note = _read(descriptor, path)
        if sweep and os.fstat(descriptor).st_size == 0:
            path.unlink(missing_ok=True)
        if note is not None and not _is_needed(wiring, note):
            yield path, note


def _read(descriptor: int, path: Path) -> _Note | None:
    """``None`` for what drvm did not write, or is just writing."""
    try:
        note = msgspec.json.decode(os.pread(descriptor, _MAX_BYTES, 0), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return None
    sound = is_point_id(note.point) and is_uuid(note.vm_uuid) and is_point_id(note.nonce)
    return note if sound and path.stem == note.nonce else None


def _is_needed(wiring: Wiring, note: _Note) -> bool:
    """A note of a machine that can't be read may say so."""
    try:
        half = Rollbacks(Path(wiring.settings.state_dir)).read(note.vm_uuid)
    except CaptureError:
        return True
    return half is not None and half.point_id == note.point


def _take_off(wiring: Wiring, path: Path, note: _Note) -> str:
    """What is to be told where the pin stays."""
    words = ""
    try:
        wiring.repository().unpin(note.point, nonce=note.nonce)
    except StoreRefused as problem:
        words = (
            f"point {note.point} stays pinned: {problem.message}; drvm unpin {note.point} takes "
            "the pin off, with credentials that may delete"
        )
    with contextlib.suppress(OSError):
        remove_durably(path)
    return words


def _elsewhere(note: _Note) -> tuple[str, str]:
    return (
        f"{note.work} was killed, and its repository is another one: {note.location}",
        f"DRVM_REPOSITORY={note.location} drvm doctor --fix takes it off",
    )
