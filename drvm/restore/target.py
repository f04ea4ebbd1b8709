"""Looking at the host that a restore goes to."""

from __future__ import annotations

from drvm.core.errors import RestoreError, UnknownVm
from drvm.host.model import Domain, DomainState, Host
from drvm.restore.preflight import ExistingDomain, TargetFacts
from drvm.restore.source import parse


def gather(
    host: Host, *, bridges: frozenset[str] | None = None, volumes: frozenset[str] = frozenset()
) -> TargetFacts:
    """The facts that a preflight asks for; changes nothing.

    ``bridges`` and ``volumes`` are the caller's to find out: libvirt does not list the one, and
    the other depends on where the images go. Raises ``HostError``.
    """
    return TargetFacts(
        uri=host.uri,
        domains=tuple(
            existing for domain in host.domains() if (existing := _existing(domain)) is not None
        ),
        networks=frozenset(host.network_names()),
        pools={pool.name: pool for pool in host.pools()},
        capabilities=host.capabilities(),
        bridges=bridges,
        volumes=volumes,
    )


def _existing(domain: Domain) -> ExistingDomain | None:
    """``None`` for one that is gone since the listing."""
    try:
        running = domain.state() is not DomainState.SHUTOFF
        tree = parse(domain.xml(inactive=True))
        macs = frozenset(
            mac.get("address", "").lower() for mac in tree.iterfind("devices/interface/mac")
        )
    except RestoreError:
        macs = frozenset()  # not one of ours to judge: its name and UUID still count
    except UnknownVm:
        return None
    return ExistingDomain(domain.name, domain.uuid, macs, running)
