"""``drvm doctor``."""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module, metadata

import click

from drvm.chunker.kernel import KERNEL
from drvm.cli.invocation import DONE, Invocation
from drvm.cli.opening import opened
from drvm.cli.output import Column
from drvm.core.errors import DrvmError, HostError, Interrupted, RestoreError, StoreError, UnknownVm
from drvm.core.findings import Finding
from drvm.core.text import printable
from drvm.core.units import format_bytes
from drvm.host.model import Host
from drvm.restore.guestfiles.appliance import require
from drvm.restore.targets.partial import LeftImage
from drvm.restore.targets.volume_leftovers import FoundLease
from drvm.snapshot.between import Stood, listed
from drvm.snapshot.recovery import find
from drvm.wiring.assembly import Wiring
from drvm.wiring.drills import (
    drilled_elsewhere,
    drills_to_forget,
    find_drill_leftovers,
    forget_noted,
    if_gone,
    noted_drills,
)
from drvm.wiring.fleet import engine_of, machines
from drvm.wiring.instant import boot_findings
from drvm.wiring.jobs import finish_elsewhere, finish_leftovers, fold_back
from drvm.wiring.keeping import left_pins, let_go
from drvm.wiring.probing import kept_probe, probe_store
from drvm.wiring.restores import (
    dead_servers,
    end_dead_servers,
    half_filled,
    half_restored,
    remove_half_filled,
    remove_half_restored,
)
from drvm.wiring.rollbacks import half_turned_back
from drvm.wiring.selection import policy_of_domain

_TOOLS = {
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdkit": "nbdkit and nbdkit-plugin-python",
    "qemu-storage-daemon": "qemu-system-common",
}
_MODULES = {"libvirt": "python3-libvirt", "nbd": "python3-libnbd"}
_PACKAGES = ("boto3", "cryptography", "blake3", "zstandard", "apscheduler")


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Put guests back that a killed backup left half-way.")
@click.option(
    "--fold",
    multiple=True,
    metavar="VM",
    help="Put this VM back from its standing overlay on its own images; repeatable.",
)
@click.option(
    "--forget-drills",
    metavar="URI",
    help="Forget dead drills on a host that is gone for good, and may have some of them still.",
)
@click.option("--yes", is_flag=True, help="Forget without asking.")
@click.pass_obj
def command(
    invocation: Invocation, fix: bool, fold: tuple[str, ...], forget_drills: str | None, yes: bool
) -> int:
    """Check what drvm needs: tools, modules, hosts, the store, the key; and look for leftovers.

    Without --fix, --fold and --forget-drills nothing is changed but a few small objects under
    probe/ in the store, which are removed again. An overlay that stands as its policy wants it is
    no leftover: --fix leaves it alone, --fold writes it into the image, and the next backup reads
    everything.

    \b
    Examples:
      drvm doctor
      drvm doctor --fix
      drvm doctor --fold db1
    """
    findings = [*_tools(), *_modules(), *_packages(), Finding("kernel", True, KERNEL.name)]
    with opened(invocation) as wiring:
        if forget_drills is not None:
            findings += _forget(invocation, wiring, forget_drills, yes=yes)
        if fix:
            findings += _repair(wiring)
        for vm in fold:
            findings += _guarded(f"fold {vm}", functools.partial(_fold, wiring, vm))
        findings += dead_servers() + left_pins(wiring)
        for uri in wiring.settings.host_uris:
            findings += _guarded(f"host {uri}", functools.partial(_host, wiring, uri))
        for uri in drilled_elsewhere(wiring):
            findings += _drills_elsewhere(wiring, uri)
        findings += _guarded("store", lambda: _store(wiring))
        findings += _guarded("repository", lambda: _repository(wiring))
        findings.append(_files(wiring))
    if invocation.output.json:
        invocation.output.document({"findings": findings, "ok": all(f.ok for f in findings)})
    else:
        rows = [["ok" if f.ok else "PROBLEM", f.name, _words(f)] for f in findings]
        invocation.output.table([Column(""), Column("what"), Column("found", wraps=True)], rows)
    return DONE if all(finding.ok for finding in findings) else 1


def _words(finding: Finding) -> str:
    return finding.detail + (f" (hint: {finding.hint})" if finding.hint and not finding.ok else "")


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Interrupted:
        raise
    except DrvmError as error:
        return [Finding(name, False, error.message, error.hint)]


def _tools() -> Iterator[Finding]:
    for tool, package in _TOOLS.items():
        path = shutil.which(tool)
        yield Finding(f"tool {tool}", path is not None, path or "missing", f"apt install {package}")


def _files(wiring: Wiring) -> Finding:
    """Whether ``drvm files`` can be used. Nothing else needs what it does, so it is no problem."""
    try:
        require(wiring.processes)
    except RestoreError as error:
        return Finding("files", True, f"can't be used: {error.message} ({error.hint})")
    return Finding("files", True, "libguestfs and a kernel for its appliance are there")


def _modules() -> Iterator[Finding]:
    """Where they come from matters: another python3 on the PATH sees neither."""
    for name, package in _MODULES.items():
        try:
            origin = import_module(name).__file__ or "built in"
            yield Finding(f"module {name}", True, origin)
        except ImportError:
            hint = f"apt install {package}, and use {platform.python_implementation()} of Debian"
            yield Finding(f"module {name}", False, "missing", hint)


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        distribution = metadata.distribution(name)
        place = distribution.locate_file("")
        yield Finding(f"package {name}", True, f"{distribution.version} in {place}")


def _host(wiring: Wiring, uri: str) -> list[Finding]:
    host = wiring.host(uri)
    there = host.capabilities()
    findings = [
        Finding(
            f"host {uri}",
            True,
            f"{host.hostname()}: {len(host.domains())} VMs, {there.arch}, "
            f"{' and '.join(sorted(there.virt_types))}",
        )
    ]
    findings += _engines(wiring, host)
    for half in find(wiring.parts(host)):
        steps = "; ".join(half.steps)
        findings.append(
            Finding(f"half-done {half.vm_name}", False, steps, "drvm doctor --fix finishes it")
        )
    findings += [_standing(stood) for stood in listed(wiring.parts(host))]
    findings += _drills(wiring, uri)
    findings += [_half_restored(image) for image in half_restored(host)]
    findings += [_half_filled(lease) for lease in half_filled(wiring, host)]
    findings += half_turned_back(wiring, host)
    return findings + boot_findings(wiring, host)


def _drills(wiring: Wiring, uri: str) -> list[Finding]:
    leftovers = find_drill_leftovers(wiring, wiring.host(uri))
    hint = "drvm doctor --fix removes it"
    found = [Finding("dead drill", False, ", ".join(left.parts), hint) for left in leftovers.dead]
    return found + [Finding("left alone", True, line) for line in leftovers.left_alone]


def _drills_elsewhere(wiring: Wiring, uri: str) -> list[Finding]:
    """Of a host that does not answer, what it may have."""
    try:
        return _drills(wiring, uri)
    except HostError as error:
        dead = noted_drills(wiring, uri)
        parts = "; ".join(", ".join(left.parts) for left in dead)
        words = f"{error.message}; of dead drills it may still have: {parts}"
        return [Finding(f"drills on {uri}", False, words, if_gone(uri))] if dead else []


def _forget(invocation: Invocation, wiring: Wiring, uri: str, *, yes: bool) -> list[Finding]:
    dead, why = drills_to_forget(wiring, uri)
    parts = "\n".join(f"  {', '.join(left.parts)}" for left in dead)
    words = (
        f"{why}\nIf it comes back, nobody will know that these are left of drills there:\n{parts}"
    )
    invocation.confirm(f"{printable(words, 4000, lines=True)}\nForget them?", yes=yes)
    return [replace(one, name=f"forget {one.name}") for one in forget_noted(dead)]


def _engines(wiring: Wiring, host: Host) -> list[Finding]:
    """Which engine would capture which VM now, and why."""
    vms: dict[tuple[str, str], list[str]] = {}
    for _, domain in machines([host]):
        with contextlib.suppress(UnknownVm):  # gone since the listing
            policy = policy_of_domain(wiring.settings.policies, host.uri, domain)
            found = engine_of(domain, policy)
            if found is not None:
                vms.setdefault((found.engine, found.reason), []).append(domain.name)
    return [
        Finding(f"engine {engine}", True, f"{', '.join(sorted(names))}: {reason}")
        for (engine, reason), names in sorted(vms.items())
    ]


def _standing(stood: Stood) -> Finding:
    overlays = ", ".join(f"{disk.target} on {disk.overlay}" for disk in stood.disks)
    detail = f"{format_bytes(stood.allocated_bytes)}: {overlays}"
    name, hint = f"standing {stood.vm_name}", f"drvm doctor --fold {stood.vm_name} merges it"
    return Finding(name, not stood.trouble, stood.trouble or detail, hint)


def _half_restored(image: LeftImage) -> Finding:
    size, day = format_bytes(image.allocated_bytes), image.written.date()
    hint = "the same restore again goes on with it; drvm doctor --fix removes it"
    return Finding("half-restored", False, f"{image.path}: {size}, of {day}", hint)


def _half_filled(lease: FoundLease) -> Finding:
    if lease.dead:
        again = "the same restore again goes on with it; " if lease.kept else ""
        return Finding("dead restore", False, lease.words, f"{again}drvm doctor --fix removes it")
    if lease.elsewhere:
        words = f"{lease.words}; that host's alone to clear away, by drvm doctor --fix with its URI"
        return Finding("restore", True, words)
    return Finding("restore", True, f"{lease.words}; dead or alive, drvm doctor --fix waits to see")


def _fold(wiring: Wiring, vm: str) -> list[Finding]:
    return [replace(fold_back(wiring, vm), name=f"fold {vm}")]


def _repair(wiring: Wiring) -> list[Finding]:
    """A host that is away keeps none of the others waiting."""
    done = end_dead_servers(wiring)
    for uri in wiring.settings.host_uris:
        done += _guarded(f"host {uri}", functools.partial(_repair_host, wiring, uri))
    done += finish_elsewhere(wiring) + _guarded("pins", lambda: let_go(wiring))
    return [replace(one, name=f"repair {one.name}") for one in done]


def _repair_host(wiring: Wiring, uri: str) -> list[Finding]:
    host = wiring.host(uri)
    done = finish_leftovers(wiring, host)
    return done + remove_half_restored(host) + remove_half_filled(wiring, host)


def _store(wiring: Wiring) -> list[Finding]:
    """Where it does not answer, what it was like the last time."""
    try:
        report = probe_store(wiring, wiring.store())
        findings = list(report.findings)
        answered = findings[0].ok
    except StoreError as error:
        findings = [Finding("write", False, error.message, error.hint)]
        answered = False
    kept = kept_probe(wiring)
    if kept is not None and not answered:
        findings.append(Finding("probed", True, kept.words))
    return [replace(finding, name=f"store {finding.name}") for finding in findings]


def _repository(wiring: Wiring) -> list[Finding]:
    listing = wiring.repository().points()
    detail = f"{wiring.repository().id[:8]}, {len(listing.points)} good points"
    damaged = [Finding("point", False, problem) for problem in listing.problems]
    return [Finding("repository", True, detail), _index(wiring), *damaged]


def _index(wiring: Wiring) -> Finding:
    size = wiring.repository().catalog.size()
    detail = (
        f"{size.hooks} hooks of {size.packs} packs in {format_bytes(size.index_bytes)};"
        f" the ids of {size.tables.tables} packs in {format_bytes(size.tables.size_bytes)}"
        f" of at most {format_bytes(wiring.settings.id_cache_bytes)}"
    )
    return Finding("index", True, detail)
