"""What there is of booted machines, for people, and the removal of what never ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drvm.core.errors import DrvmError, HostError, Locked
from drvm.core.findings import Finding
from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.host.model import DomainState
from drvm.repository.repository import Repository
from drvm.restore.instant.parts import Parts, as_it_ran, domain_of, is_over_export, remove_boot
from drvm.restore.instant.place import Place, places
from drvm.restore.instant.record import Boot


@dataclass(frozen=True, slots=True)
class BootState:
    """``machine``: ``running``, ``paused``, ``stopped by its disks``, ``off``, ``gone``. ``left``:
    the disks that still need the repository; ``pulling``: of some of them (done, of how many)
    bytes. ``busy``: a drvm works on it. ``hint``: what to do where it is not ``ok``."""

    boot: Boot
    machine: str
    served: bool
    left: tuple[str, ...]
    pulling: Mapping[str, tuple[int, int]]
    busy: bool
    ok: bool
    words: str
    hint: str


def look(parts: Parts) -> list[BootState]:
    """All of this state directory's on that host; changes nothing. Raises ``DrvmError``."""
    found = [parts.boots.find(name) for name in parts.boots.names()]
    return [_look_at(parts, b) for b in found if b is not None and b.uri == parts.host.uri]


def findings(parts: Parts) -> list[Finding]:
    """One for each of them, for one that can't be read, and for servers that belong to none of this
    state directory's."""
    told, known = [], set()
    for name in parts.boots.names():
        try:
            boot = parts.boots.find(name)
            if boot is None:
                continue
            known.add(boot.vm_uuid)
            if boot.uri == parts.host.uri:
                state = _look_at(parts, boot)
                told.append(Finding(f"booted {name}", state.ok, state.words, state.hint))
        except DrvmError as problem:
            told.append(Finding(f"booted {name}", False, problem.message, problem.hint))
    strangers = [Place(uuid).directory for uuid in places() if uuid not in known]
    words = [f"{path}: a server of a drvm with another state directory" for path in strangers]
    return told + [Finding("left alone", True, line) for line in words]


def sweep(parts: Parts, repository: Callable[[], Repository]) -> list[Finding]:
    """Remove what is left of boots whose guest never ran, or that somebody has discarded. What a
    guest may have written to is left alone. ``repository``: opened only where it is needed."""
    done = []
    for name in parts.boots.names():
        try:
            with parts.boots.lock(name):
                boot = parts.boots.find(name)
                if boot is None or boot.uri != parts.host.uri:
                    continue
                was, boot = boot.phase, as_it_ran(parts, boot)
                if boot.phase in ("making", "discarding"):
                    left = remove_boot(parts, boot, repository())
                    words = "; ".join(("removed what was left of it", *left))
                    done.append(Finding(f"boot {name}", True, words))
                elif boot.phase != was:
                    words = "kept: somebody started it, its guest has written"
                    done.append(Finding(f"boot {name}", True, words))
        except Locked:
            continue
        except DrvmError as problem:
            done.append(Finding(f"boot {name}", False, problem.message, problem.hint))
    return done


def _look_at(parts: Parts, boot: Boot) -> BootState:
    place = Place(boot.vm_uuid)
    machine = _machine(parts, boot)
    served = place.is_served() and place.is_fronted()
    busy = _is_busy(parts, boot.name)
    left: tuple[str, ...] = ()
    pulling: Mapping[str, tuple[int, int]] = {}
    try:
        left, pulling = _pulling(parts, boot, machine)
        words, hint = _judge(boot, machine, served, left)
    except HostError as problem:
        words, hint = f"{machine}, but {problem.message}", problem.hint or "look at its images"
    ok = busy or not hint
    where = f" in {printable(boot.location, 300)}" if boot.location else ""
    words = f"over point {boot.point} of {boot.origin}{where}: {words}"
    if pulling:
        done, total = (sum(numbers) for numbers in zip(*pulling.values(), strict=True))
        words += f", {format_bytes(done)} of {format_bytes(total)} pulled"
    return BootState(boot, machine, served, left, pulling, busy, ok, words, hint)


def _machine(parts: Parts, boot: Boot) -> str:
    domain = domain_of(parts, boot)
    if domain is None:
        return "gone"
    if domain.stopped_by_disks():
        return "stopped by its disks"
    state = domain.state()
    return "off" if state is DomainState.SHUTOFF else state.value


def _pulling(
    parts: Parts, boot: Boot, machine: str
) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    if boot.phase in ("making", "discarding") or machine == "gone":
        return (), {}
    left = tuple(d.target for d in boot.disks if is_over_export(parts, boot, d))
    pulling = {}
    domain = domain_of(parts, boot) if machine != "off" else None
    for target in left if domain is not None else ():
        job = domain.block_job(target) if domain is not None else None
        if job is not None:
            pulling[target] = (job.done_bytes, job.total_bytes)
    return left, pulling


def _judge(boot: Boot, machine: str, served: bool, left: tuple[str, ...]) -> tuple[str, str]:
    """What it is, and what to do about it, empty where nothing."""
    name = boot.name
    if boot.phase == "making" and machine not in ("off", "gone"):
        return f"{machine}: somebody started it", "drvm doctor --fix notes that, and keeps it"
    if boot.phase == "making":
        return "it was not started any more", "drvm doctor --fix removes it"
    if boot.phase == "discarding":
        return "it was being discarded", "drvm doctor --fix goes on with that"
    if machine == "gone":
        return "it is not defined any more", f"drvm boot --discard {name} removes its images"
    if boot.phase == "finishing" or not left:
        return f"{machine}, its disks not yet plain", f"drvm boot --finish {name} goes on"
    if machine == "stopped by its disks" or not served:
        lost = "" if served else ", its server is dead"
        return f"{machine}{lost}", f"drvm boot --resume {name} goes on"
    return machine, ""


def _is_busy(parts: Parts, name: str) -> bool:
    try:
        with parts.boots.lock(name):
            return False
    except Locked:
        return True
