"""The demo: a real small VM is backed up, lost, restored, cloned and drilled, by drvm's own
commands against a real S3 server.

Everything that it makes has a name that begins with ``drvm-demo-`` and ends with it; what a
killed demo left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, HostError, ProcessFailed
from drvm.core.process import Processes
from drvm.core.units import format_seconds
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain
from drvm.lab import guest as lab
from drvm.lab import services

PREFIX = "drvm-demo-"
_COMMAND_LIMIT_S = 600.0
_AGENT_LIMIT_S = 180.0
_POLL_S = 0.2
_LOCK = "in-use"

_WRITE = """
set -e
dd if=/dev/urandom of=/root/ledger bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/data/archive bs=1M count=24 2>/dev/null
echo 'first version' > /data/notes
sync
"""
_CHANGE = """
set -e
dd if=/dev/urandom of=/data/archive bs=4096 seek=100 count=64 conv=notrunc 2>/dev/null
echo 'second version' > /data/notes
sync
"""
_SUMS = "cd / && sha256sum root/ledger data/archive data/notes"


@dataclass(frozen=True, slots=True)
class Demo:
    """One run: its directory, its names, and how its commands are run."""

    directory: Path
    vm: str
    clone: str
    pool: str
    host: LibvirtHost
    processes: Processes
    clock: Clock
    server: services.S3Server

    def drvm(self, *arguments: str) -> str:
        """Run one of the product's commands as a user would, and show it."""
        show = " ".join(f"'{word}'" if " " in word else word for word in arguments)
        _say(f"\n$ drvm {show}")
        config = str(self.directory / "config.yaml")
        output = self.processes.run(
            [sys.executable, "-m", "drvm", "--config", config, *arguments],
            timeout_s=_COMMAND_LIMIT_S,
            env={
                "AWS_ACCESS_KEY_ID": self.server.access_key,
                "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
                "AWS_ENDPOINT_URL": self.server.endpoint,
                "DRVM_PASSWORD_FILE": str(self.directory / "passphrase"),
                "HOME": str(self.directory),
                "COLUMNS": "110",
            },
        )
        text = output.stdout.decode(errors="replace")
        _say((output.stderr.decode(errors="replace") + text).rstrip())
        return text

    def answering(self, name: str) -> Domain:
        """The domain, when its agent answers."""
        domain = self.host.domain(name)
        deadline = self.clock.monotonic_s() + _AGENT_LIMIT_S
        while True:
            try:
                domain.agent_ping()
                return domain
            except HostError:
                if self.clock.monotonic_s() >= deadline:
                    raise
            self.clock.sleep(_POLL_S)

    def in_guest(self, name: str, script: str) -> str:
        result = self.answering(name).guest_run(["/bin/sh", "-c", script], timeout_s=120)
        if result.exit_code != 0:
            raise DrvmError(f"in {name}: {result.stderr.decode(errors='replace')}")
        return result.stdout.decode()


def run(processes: Processes, clock: Clock, report_dir: Path) -> Path:
    """Returns the path of the report. Leaves nothing else behind, however it ends."""
    started = clock.monotonic_s()
    with contextlib.ExitStack() as stack:
        _say("starting libvirtd and SeaweedFS where they do not run")
        uri = stack.enter_context(services.libvirtd(processes, clock))
        host = LibvirtHost(uri)
        stack.callback(host.close)
        sweep(host, processes)
        directory = stack.enter_context(_workspace())
        (directory / "s3").mkdir()
        server = stack.enter_context(services.seaweedfs(directory / "s3", processes, clock))
        demo = _prepare(stack, host, processes, clock, directory, server)
        report = _story(demo, report_dir)
    _say(f"\ndone in {format_seconds(clock.monotonic_s() - started)}; everything was removed but")
    _say(f"the report: {report}")
    return report


def sweep(host: LibvirtHost, processes: Processes) -> None:
    """Remove what killed demos left: those whose directory nobody holds any more."""
    for directory in sorted(lab.IMAGES.glob(f"{PREFIX}*")):
        try:
            with _held(directory):
                _say(f"removing what an earlier demo left in {directory}")
                _remove_all(host, processes, directory.name)
                shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue


def _prepare(
    stack: contextlib.ExitStack,
    host: LibvirtHost,
    processes: Processes,
    clock: Clock,
    directory: Path,
    server: services.S3Server,
) -> Demo:
    """A running guest, a storage pool, a passphrase; all of it removed with ``stack``."""
    cache = lab.default_cache()
    _say("building the small guest (the first time, its Debian packages are downloaded)")
    template = lab.build_template(cache, processes)
    virt_type = lab.probe_virt_type(template, cache, processes, clock)
    _say(f"guests run with {'KVM' if virt_type == 'kvm' else 'emulation (no working KVM)'}")
    name = directory.name
    stack.callback(_remove_all, host, processes, name)
    source, pool = directory / "source", directory / "pool"
    for path in (source, pool):
        path.mkdir(mode=0o711)
    pool_name = f"{name}-pool"
    _virsh(processes, "pool-create-as", pool_name, "dir", "--target", str(pool))
    lab.create_disks(template, source, processes)
    host.define(lab.domain_xml(f"{name}-web", source, virt_type=virt_type)).start()
    (directory / "passphrase").write_text(secrets.token_urlsafe(24) + "\n")
    (directory / "passphrase").chmod(0o600)
    return Demo(
        directory,
        f"{name}-web",
        f"{name}-copy",
        pool_name,
        host,
        processes,
        clock,
        server,
    )


def _story(demo: Demo, report_dir: Path) -> Path:
    _heading("a VM with data on two disks (qcow2 and raw)")
    demo.in_guest(demo.vm, _WRITE)
    _heading("a repository, and the first recovery point")
    demo.drvm("init", "--repository", f"s3://{demo.server.bucket}/demo")
    _configure(demo)
    demo.drvm("vms")
    demo.drvm("backup", demo.vm)
    _heading("the guest works on, and a second point stores only what changed")
    demo.in_guest(demo.vm, _CHANGE)
    sums = demo.in_guest(demo.vm, _SUMS)
    demo.drvm("backup", demo.vm)
    demo.drvm("points")
    _heading("disaster: the VM and its disks are gone")
    demo.host.domain(demo.vm).destroy()
    demo.host.domain(demo.vm).undefine()
    shutil.rmtree(demo.directory / "source")
    _say("deleted both disks and the definition")
    _heading("restore")
    demo.drvm("restore", demo.vm, "--pool", demo.pool, "--start")
    _compare("the restored VM", demo.in_guest(demo.vm, _SUMS), sums)
    _heading("a clone beside it, with an identity of its own")
    demo.drvm("clone", demo.vm, demo.clone, "--pool", demo.pool, "--start")
    _compare("the clone", demo.in_guest(demo.clone, _SUMS), sums)
    _heading("a recovery drill, and its report")
    report_dir.mkdir(parents=True, exist_ok=True)
    report = report_dir / "demo-report.html"
    demo.drvm("drill", demo.vm, "--report", str(report))
    return report


def _configure(demo: Demo) -> None:
    """What ``init`` wrote, and a policy."""
    config = demo.directory / "config.yaml"
    check = ["/bin/grep", "-q", "second version", "/data/notes"]
    drills = demo.directory / "drills"
    drills.mkdir(mode=0o711)
    text = f"""\
state_dir: {demo.directory}/state
cache_dir: {demo.directory}/cache
policies:
  - name: demo
    vms: ["{demo.vm}"]
    schedule: "0 3 * * *"
    rpo: 24h
    drill:
      schedule: "0 5 * * 0"
      directory: {drills}
      rto: 15m
      checks:
        - agent: {{}}
        - command: {{run: {json.dumps(check)}}}
"""
    config.write_text(config.read_text() + text)


def _compare(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise DrvmError(f"{what} has other data:\n{found}instead of\n{expected}")
    _say(f"{what} booted, and its agent says that all checksums are right")


def _remove_all(host: LibvirtHost, processes: Processes, name: str) -> None:
    for domain in host.domains():
        if domain.name.startswith(f"{name}-"):
            domain.destroy()
            domain.undefine()
    for drill in (lab.IMAGES / name / "drills").glob("drvm-drill-*"):
        host.destroy_network(drill.name)
    with contextlib.suppress(ProcessFailed):
        _virsh(processes, "pool-destroy", f"{name}-pool")


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    with lab.workspace(PREFIX.rstrip("-")) as directory, _held(directory):
        yield directory


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """A lock that ends with us; raises ``BlockingIOError`` where somebody else holds it."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _virsh(processes: Processes, *arguments: str) -> None:
    processes.run(["virsh", "-q", "-c", lab.URI, *arguments], timeout_s=60)


def _heading(text: str) -> None:
    _say(f"\n=== {text}")


def _say(text: str) -> None:
    print(text, flush=True)
