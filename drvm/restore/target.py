"""Looking at the host that a restore goes to."""

from __future__ import annotations

from drvm.core.errors import RestoreError, UnknownVm
from drvm.core.text import printable
from drvm.host.model import Domain, DomainState, Host
from drvm.restore.machine.source import parse
from drvm.restore.preflight import ExistingDomain, TargetFacts, listed


def gather(host: Host) -> TargetFacts:
    """The facts that a preflight asks for; changes nothing.

    ``volumes`` is the caller's to find out: it depends on where the images go. Raises
    ``HostError``.
    """
    return TargetFacts(
        uri=host.uri,
        domains=tuple(
            existing for domain in host.domains() if (existing := _existing(domain)) is not None
        ),
        networks=frozenset(host.network_names()),
        pools={pool.name: pool for pool in host.pools()},
        capabilities=host.capabilities(),
        bridges=host.bridges(),
    )


def refusals(host: Host, facts: TargetFacts, definition_xml: str) -> tuple[str, ...]:
    """Why the target would not take the definition, or not start it, in libvirt's judgement.

    Only where its kind of machine can run there at all: without KVM libvirt says nothing but that.
    """
    kind = parse(definition_xml).get("type")
    if kind not in facts.capabilities.virt_types:
        return ()
    cpu = _cpu_problems(host, facts, definition_xml)
    refusal = None if cpu else host.refusal(definition_xml)
    if refusal is None:
        return cpu
    line = (
        f"libvirt at {facts.uri} does not take the definition ({refusal}): use --machine or --cpu "
        "with another one if it is of that, or restore the disks to a folder by --output"
    )
    return (printable(line, 600),)


def _cpu_problems(host: Host, facts: TargetFacts, definition_xml: str) -> tuple[str, ...]:
    """Why the machine would not start with its processor: a line at most, with the switch."""
    found = host.cpu_obstacle(definition_xml)
    if found is None:
        return ()
    model = parse(definition_xml).findtext("cpu/model") or "processor"
    line = (
        f"{facts.uri} can't give the machine its CPU {model} ({found.reason}): use --cpu NAME "
        f"({listed(found.usable)})"
    )
    return (printable(line, 900),)


def _existing(domain: Domain) -> ExistingDomain | None:
    """``None`` for one that is gone since the listing."""
    try:
        running = domain.state() is not DomainState.SHUTOFF
        saved = domain.has_managed_save()
        tree = parse(domain.xml(inactive=True))
        macs = frozenset(
            mac.get("address", "").lower() for mac in tree.iterfind("devices/interface/mac")
        )
    except RestoreError:
        macs = frozenset()  # not one of ours to judge: its name and UUID still count
    except UnknownVm:
        return None
    return ExistingDomain(domain.name, domain.uuid, macs, running, saved)
