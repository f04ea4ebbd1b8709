"""A KVM host through libvirt. This room is the only one that imports libvirt."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libvirt

from drvm.core.errors import HostError, HostUnreachable, UnknownVm
from drvm.core.ids import is_uuid
from drvm.core.units import KIB
from drvm.host import libvirt_cpu, libvirt_xml
from drvm.host.libvirt_connection import Connection
from drvm.host.libvirt_domain import LibvirtDomain
from drvm.host.libvirt_storage import LibvirtStorage
from drvm.host.model import CpuObstacle, Domain, HostCapabilities, Pool
from drvm.host.places import SYSTEM, StatePlaces
from drvm.host.reach import is_remote
from drvm.host.storage import Storage

_MAX_DOMAINS = 10_000
_MAX_DEVICES = 10_000
_MAX_REFUSAL_CHARS = 300
_REFUSALS = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_OVERFLOW,
        libvirt.VIR_ERR_INTERNAL_ERROR,  # such as too few PCI slots
    }
)
_OF_DEVICES = Path("/proc/sys/net/ipv4/conf")
_BY_ROUTE_ONLY = "1"
"""Of ``rp_filter``: a host takes packets for any address it has from any device, also from one
without an address, unless it looks where their senders are reached. Linux's ip-sysctl.rst."""
_FIRMWARE = re.compile(r'"filename":"(?P<path>/[^"\\]+)","node-name":"libvirt-pflash0-storage"')


class LibvirtHost:
    """Implements ``Host``. Opened at the first call; may be used from any thread."""

    def __init__(self, uri: str) -> None:
        self._connection = Connection(uri)

    @property
    def uri(self) -> str:
        return self._connection.uri

    @property
    def remote(self) -> bool:
        return is_remote(self.uri)

    @property
    def storage(self) -> Storage:
        return LibvirtStorage(self._connection)

    @property
    def places(self) -> StatePlaces | None:
        known = urlsplit(self.uri).path == "/system" and not self.remote
        return SYSTEM if known else None

    def hostname(self) -> str:
        return str(self._connection.call(lambda c: c.getHostname(), repeatable=True))

    # -- domains ------------------------------------------------------------------------------
    def domains(self) -> list[Domain]:
        found = self._connection.call(lambda c: c.listAllDomains(), repeatable=True)
        if len(found) > _MAX_DOMAINS:
            raise HostError(f"{len(found)} domains on one host are not believed")
        return sorted((self._wrap(d) for d in found), key=lambda d: d.name)

    def domain(self, name_or_uuid: str) -> Domain:
        def look_up(connection: Any) -> Any:
            if is_uuid(name_or_uuid.lower()):
                try:
                    return connection.lookupByUUIDString(name_or_uuid)
                except libvirt.libvirtError as problem:
                    if problem.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
            return connection.lookupByName(name_or_uuid)

        return self._wrap(self._connection.call(look_up, repeatable=True))

    def find_domain(self, name_or_uuid: str) -> Domain | None:
        try:
            return self.domain(name_or_uuid)
        except UnknownVm:
            return None

    def define(self, domain_xml: str) -> Domain:
        return self._wrap(self._connection.call(lambda c: c.defineXML(domain_xml), repeatable=True))

    def restore_running(self, memory: Path, domain_xml: str) -> None:
        """The processor is the one that the machine ran with, not the one to choose anew."""

        def bring_back(connection: Any) -> None:
            secure = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
            saved = connection.saveImageGetXMLDesc(str(memory), secure)
            connection.restoreFlags(str(memory), libvirt_xml.with_cpu_of(saved, domain_xml), 0)

        self._connection.call(bring_back, repeatable=False)

    def start_transient(self, domain_xml: str) -> Domain:
        flags = libvirt.VIR_DOMAIN_START_AUTODESTROY
        return self._wrap(
            self._connection.call(lambda c: c.createXML(domain_xml, flags), repeatable=False)
        )

    def _wrap(self, domain: Any) -> LibvirtDomain:
        return LibvirtDomain(self._connection, domain.name(), domain.UUIDString())

    # -- what it can do, and where it keeps things --------------------------------------------
    def capabilities(self) -> HostCapabilities:
        def ask(connection: Any) -> tuple[str, str]:
            return (
                connection.getCapabilities(),
                connection.getDomainCapabilities(None, "x86_64", None, None),
            )

        return libvirt_xml.capabilities(*self._connection.call(ask, repeatable=True))

    def available_memory_bytes(self) -> int | None:
        """As ``MemAvailable``, which libvirt does not tell: free, or of caches. What other machines
        share counts as cache, so there is never more than they leave by their own count."""

        def ask(connection: Any) -> tuple[dict[str, int], list[Any]]:
            told = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
            active = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
            stats = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_BALLOON, active)
            return told, [figures for _, figures in stats]

        try:
            told, machines = self._connection.call(ask, repeatable=True)
        except HostUnreachable:
            raise
        except HostError:
            return None
        if not {"total", "free"} <= told.keys():
            return None
        unused = sum(told.get(name, 0) for name in ("free", "buffers", "cached"))
        left = told["total"] - sum(one.get("balloon.rss", 0) for one in machines)
        return int(max(0, min(unused, left)) * KIB)

    def qemu_user(self) -> tuple[int, int] | None:
        told = self._connection.call(lambda c: c.getCapabilities(), repeatable=True)
        return libvirt_xml.qemu_user(told)

    def firmware_file(self, domain_xml: str) -> Path | None:
        try:
            argv: str = self._connection.call(
                lambda c: c.domainXMLToNative("qemu-argv", domain_xml, 0), repeatable=True
            )
        except HostError:
            return None
        found = _FIRMWARE.search(argv)
        return Path(found["path"]) if found else None

    def refusal(self, domain_xml: str) -> str | None:
        def try_it(connection: Any) -> str | None:
            try:
                connection.domainXMLToNative("qemu-argv", domain_xml, 0)
            except libvirt.libvirtError as problem:
                if problem.get_error_code() not in _REFUSALS:
                    raise
                return " ".join((problem.get_error_message() or "").split())[:_MAX_REFUSAL_CHARS]
            return None

        try:
            return self._connection.call(try_it, repeatable=True)
        except HostUnreachable:
            raise
        except HostError:
            return None

    def cpu_obstacle(self, domain_xml: str) -> CpuObstacle | None:
        return libvirt_cpu.obstacle(self._connection, domain_xml)

    def pools(self) -> list[Pool]:
        found = self._connection.call(
            lambda c: [_pool(p) for p in c.listAllStoragePools()], repeatable=True
        )
        return sorted(found, key=lambda pool: pool.name)

    def pool(self, name: str) -> Pool:
        pools = {pool.name: pool for pool in self.pools()}
        if name not in pools:
            there = ", ".join(pools) or "none at all"
            raise HostError(f"there is no storage pool {name}", hint=f"the host has: {there}")
        return pools[name]

    def refresh_pool(self, name: str) -> None:
        self._connection.call(lambda c: c.storagePoolLookupByName(name).refresh(), repeatable=True)

    # -- networks -----------------------------------------------------------------------------
    def network_names(self) -> list[str]:
        return sorted(self._connection.call(lambda c: c.listNetworks(), repeatable=True))

    def bridges(self) -> frozenset[str] | None:
        try:
            found: list[str] = self._connection.call(
                lambda c: [i.XMLDesc() for i in c.listAllInterfaces()[:_MAX_DEVICES]],
                repeatable=True,
            )
        except HostUnreachable:
            raise
        except HostError:  # a libvirt that was built without a driver for interfaces
            return None
        return libvirt_xml.bridges(found)

    def create_network(self, network_xml: str) -> None:
        def create(connection: Any) -> str:
            made = connection.networkCreateXML(network_xml)
            try:
                return str(made.bridgeName())
            except libvirt.libvirtError:  # it has none
                return ""

        bridge = self._connection.call(create, repeatable=False)
        if bridge and not self.remote:
            with contextlib.suppress(OSError):  # not root's: the host's own setting holds
                (_OF_DEVICES / bridge / "rp_filter").write_text(_BY_ROUTE_ONLY)

    def network_bridge(self, name: str) -> str:
        return str(
            self._connection.call(
                lambda c: c.networkLookupByName(name).bridgeName(), repeatable=True
            )
        )

    def destroy_network(self, name: str) -> None:
        def destroy(connection: Any) -> None:
            try:
                connection.networkLookupByName(name).destroy()
            except libvirt.libvirtError as problem:
                if problem.get_error_code() not in (
                    libvirt.VIR_ERR_NO_NETWORK,
                    libvirt.VIR_ERR_OPERATION_INVALID,
                ):
                    raise

        self._connection.call(destroy, repeatable=True)

    def close(self) -> None:
        self._connection.close()


def _pool(pool: Any) -> Pool:
    kind, path = libvirt_xml.pool_kind_and_path(pool.XMLDesc(0))
    active = bool(pool.isActive())
    available = int(pool.info()[3]) if active else 0
    return Pool(pool.name(), kind, active, path, available)
