"""A second "KVM host" on this machine: a libvirtd in namespaces of its own, with a network card, a
hostname, an sshd and storage of its own. It sees nothing of the first host's images.

/tmp and the programs are shared, so that drvm itself can be run there: ``SecondHost.run``.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.process import Output, Processes
from drvm.lab import guest as lab
from tests.guests import unique_name
from tests.own_libvirtd import OwnLibvirtd, in_namespaces
from tests.tls import make_certificates

POOL = "default"
IMAGES = Path("/var/lib/libvirt/images")
"""The directory of ``POOL``, as the second host sees it."""

_DIRECTORIES = (
    "etc/libvirt",
    "run",
    "var/lib/libvirt",
    "var/lib/swtpm-localca",
    "var/log/libvirt",
    "var/log/swtpm",
    "var/cache/libvirt",
)
# no authentication: nobody but the tests' own host is on this wire
_SETTINGS = """
listen_tls = {tls}
listen_tcp = 1
auth_tcp = "none"
key_file = "/mnt/tls/serverkey.pem"
cert_file = "/mnt/tls/servercert.pem"
ca_file = "/mnt/tls/cacert.pem"
"""
_LIMIT_S = 60.0
_clock = SystemClock()


@dataclass(frozen=True)
class SecondHost:
    """``uri``: by TCP, without authentication; ``ssh_uri``: with a key of the test's own;
    ``tls_uri``: with certificates of its own, empty where they were not asked for.
    ``address``: its own on the wire, ``gateway``: the first host's. ``images``: the directory of
    its pool, as the *first* host sees it; ``libvirtd`` may be killed and comes back by itself."""

    uri: str
    ssh_uri: str
    tls_uri: str
    address: str
    gateway: str
    images: Path
    libvirtd: OwnLibvirtd

    def run(
        self, argv: Sequence[str], *, timeout_s: float = 60.0, env: dict[str, str] | None = None
    ) -> Output:
        """A command there, to its end. Raises ``ProcessFailed``."""
        return self.libvirtd.processes.run(self.inside(argv), timeout_s=timeout_s, env=env)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line, here, that runs ``argv`` there."""
        enter = ["nsenter", "--target", str(self.libvirtd.shell())]
        return [*enter, "--mount", "--uts", "--net", "--pid", "--", *argv]

    def virsh(self, *command: str, timeout_s: float = 60.0) -> str:
        argv = ["virsh", "-q", "-c", self.uri, *command]
        return self.libvirtd.processes.run(argv, timeout_s=timeout_s).stdout.decode()


@contextlib.contextmanager
def second_host(processes: Processes, *, tls: bool = False) -> Iterator[SecondHost]:
    """Up in a second or two. Its machines, and what is in its pool, end with it."""
    number = secrets.randbelow(1 << 14) << 2
    gateway, address = (f"10.77.{n >> 8}.{n & 255}" for n in (number + 1, number + 2))
    with lab.workspace(unique_name("second")) as root:
        for place in ("run/sshd", "run/lock", "var/lib/libvirt/images"):
            (root / place).mkdir(parents=True, exist_ok=True)
        (root / "run/sshd").chmod(0o755)
        (root / "ssh").mkdir(mode=0o700)
        ssh_uri = _ssh(processes, root / "ssh", address)
        tls_uri = ""
        if tls:
            make_certificates(processes, root / "tls", address)
            tls_uri = f"qemu+tls://{address}/system?pkipath={root}/tls"
        with in_namespaces(
            processes,
            root,
            f"qemu+tcp://{address}/system",
            _DIRECTORIES,
            settings=_SETTINGS.format(tls=int(tls)),
            switches="--listen",
            prepare=_prepare(address),
        ) as libvirtd:
            _wire(libvirtd, gateway, address)
            libvirtd.wait()
            images = root / "var/lib/libvirt/images"
            host = SecondHost(libvirtd.uri, ssh_uri, tls_uri, address, gateway, images, libvirtd)
            host.virsh("pool-create-as", POOL, "dir", "--target", str(IMAGES))
            yield host


def _prepare(address: str) -> str:
    """In the namespaces, as a shell's script: it waits for its end of the wire."""
    return f"""
hostname second
if id tss >/dev/null 2>&1; then chown tss /var/lib/swtpm-localca; fi
ip link set lo up
n=0
until ip link show eth0 >/dev/null 2>&1; do
  n=$((n + 1)); [ $n -lt 600 ]; sleep 0.1
done
ip address add {address}/30 dev eth0
ip link set eth0 up
/usr/sbin/sshd -f /mnt/ssh/sshd_config -E /mnt/ssh/log
"""


def _wire(libvirtd: OwnLibvirtd, gateway: str, address: str) -> None:
    """A pair of network cards, one end of it here; both go when the namespaces do."""
    here = f"drvm{secrets.token_hex(4)}"
    processes = libvirtd.processes
    _in_its_own_network(libvirtd)
    link = ["ip", "link", "add", here, "type", "veth", "peer", "name", "eth0"]
    processes.run([*link, "netns", str(libvirtd.child.pid)], timeout_s=10)
    processes.run(["ip", "address", "add", f"{gateway}/30", "dev", here], timeout_s=10)
    processes.run(["ip", "link", "set", here, "up"], timeout_s=10)


def _in_its_own_network(libvirtd: OwnLibvirtd) -> None:
    """Wait until it is: before, its end of the wire would come to be here."""
    ours = Path("/proc/self/ns/net").readlink()
    deadline_s = _clock.monotonic_s() + _LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{libvirtd.child.pid}/ns/net").readlink() != ours:
                return
        if libvirtd.child.returncode() is not None:
            libvirtd.wait()  # says why it ended, or skips
        assert _clock.monotonic_s() < deadline_s, "unshare does not unshare"
        _clock.sleep(0.02)


def _ssh(processes: Processes, directory: Path, address: str) -> str:
    """Keys, sshd's config, and the URI: with a key and the host's name known beforehand."""
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        processes.run(argv, timeout_s=30)
    (directory / "sshd_config").write_text(
        f"""ListenAddress {address}
HostKey /mnt/ssh/host
AuthorizedKeysFile /mnt/ssh/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
    )
    host_key = (directory / "host.pub").read_text()
    (directory / "known_hosts").write_text(f"{address} {host_key}")
    ssh = directory / "client"
    options = f"-o UserKnownHostsFile={directory}/known_hosts -o StrictHostKeyChecking=yes"
    options += f" -o BatchMode=yes -o IdentitiesOnly=yes -i {directory}/user -F none"
    ssh.write_text(f'#!/bin/sh\nexec ssh {options} "$@"\n')
    ssh.chmod(0o755)
    return f"qemu+ssh://root@{address}/system?command={ssh}"
