"""One restore at a time to one name and one UUID: they decide where NVRAM and TPM state lie too.

A claim is a lock among all of drvm's processes on this machine, and ends with its process, however
that ends (``docs/adr/042-identity-and-preflight.md``). It does not hold against virsh, nor against
drvm on another machine: so whoever holds it looks once more at what the target has, before the
first byte and again right before the machine is defined.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack

from drvm.core.errors import PreflightFailed
from drvm.host.model import DomainState, Host
from drvm.snapshot.locks import shared_directory, try_lock


@contextlib.contextmanager
def claimed(host: Host, name: str, vm_uuid: str) -> Iterator[None]:
    """Raises ``PreflightFailed`` where another restore to the name or UUID on ``host`` is under
    way. Where this user has no directory below ``/run`` nothing is held."""
    directory = shared_directory()
    with ExitStack() as stack:
        for kind, text in (("name", name), ("uuid", vm_uuid)):
            if directory is None:
                break
            key = hashlib.sha256(f"{host.uri}\0{kind}\0{text}".encode()).hexdigest()[:32]
            descriptor = try_lock(directory / f"claim-{key}.lock")
            if descriptor is None:
                problem = (
                    f"another restore to the {kind} {text} is under way: wait until it has ended, "
                    "or use drvm clone POINT NAME with another name"
                )
                raise PreflightFailed(f"{name} is being restored already", problems=[problem])
            stack.callback(os.close, descriptor)
        yield


def check_free(host: Host, name: str, vm_uuid: str, *, replace: bool) -> None:
    """What the preflight said of name and UUID holds still. Raises ``PreflightFailed``."""
    found = {
        domain.uuid: domain
        for key in (name, vm_uuid)
        if (domain := host.find_domain(key)) is not None
    }
    problems = [
        f"a VM {domain.name!r} (UUID {domain.uuid}) has come to {host.uri} since this restore was "
        "planned: use drvm clone POINT NAME with another name, or --replace"
        for domain in found.values()
        if not replace or (domain.name, domain.uuid) != (name, vm_uuid)
    ]
    own = found.get(vm_uuid) if replace else None
    if own is not None and own.state() is not DomainState.SHUTOFF:
        problems.append(f"the VM {name!r} was started since: shut it down before --replace")
    elif own is not None and own.has_managed_save():
        problems.append(
            f"the memory of the VM {name!r} was saved since, and would go on with its old disks: "
            f"give it up (virsh managedsave-remove {name}) before --replace"
        )
    if problems:
        raise PreflightFailed(f"{name} can't be restored to {host.uri} any more", problems=problems)
