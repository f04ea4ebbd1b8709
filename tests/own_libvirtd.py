"""A libvirtd of the test's own, which may be killed: in namespaces of its own, on the same images
as the host's. It comes back by itself, as under a service manager."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from drvm.core.process import Child, Processes
from drvm.lab import guest as lab
from tests.guests import unique_name

_LIMIT_S = 60.0
_DIRECTORIES = (
    "etc/libvirt",
    "run/libvirt",
    "var/lib/libvirt/qemu",
    "var/lib/libvirt/dnsmasq",
    "var/log/libvirt",
    "var/cache/libvirt",
)
_QEMU_CONF = "cgroup_controllers = []\nstdio_handler = 'file'\n".replace("'", '"')
_clock = SystemClock()

# a shell stays process 1 there: libvirtd does not reap what it does not know
_SCRIPT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
root=$1; shift
for place in "$@"; do mkdir -p /$place; mount --bind $root/$place /$place; done
set +e
while [ ! -e $root/end ]; do
  [ -e $root/away ] || libvirtd --config $root/libvirtd.conf --pid-file $root/libvirtd.pid
  sleep 0.1
done
"""


@dataclass(frozen=True)
class OwnLibvirtd:
    uri: str
    root: Path
    child: Child
    processes: Processes

    def kill(self, *, away: bool = False) -> None:
        """SIGKILL. With ``away`` it stays away until ``come_back``."""
        if away:
            (self.root / "away").touch()
        os.kill(self._pid(), signal.SIGKILL)

    def come_back(self) -> None:
        (self.root / "away").unlink()
        self.wait()

    def wait(self) -> None:
        deadline_s = _clock.monotonic_s() + _LIMIT_S
        while True:
            with contextlib.suppress(ProcessFailed):
                self.processes.run(["virsh", "-q", "-c", self.uri, "version"], timeout_s=30)
                return
            tail = (self.root / "log").read_text()[-1500:]
            assert self.child.returncode() is None, tail
            assert _clock.monotonic_s() < deadline_s, tail
            _clock.sleep(0.1)

    def _pid(self) -> int:
        """The child of the namespace's first process, as the host counts."""
        shell = self._children(self.child.pid)[0]
        for pid in self._children(shell):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "libvirtd":
                return pid
        raise AssertionError("it does not run")

    @staticmethod
    def _children(pid: int) -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def own_libvirtd(processes: Processes) -> Iterator[OwnLibvirtd]:
    """Its machines end with it."""
    with lab.workspace(unique_name("libvirtd")) as root:
        for place in _DIRECTORIES:
            (root / place).mkdir(parents=True)
        (root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
        (root / "libvirtd.conf").write_text('unix_sock_group = "root"\nauth_unix_rw = "none"\n')
        argv = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child"]
        argv += ["sh", "-c", _SCRIPT, "sh", str(root), *_DIRECTORIES]
        child = processes.spawn(argv, log=root / "log", detach=True)
        uri = f"qemu+unix:///system?socket={root}/run/libvirt/libvirt-sock"
        try:
            made = OwnLibvirtd(uri, root, child, processes)
            try:
                made.wait()
            except AssertionError as problem:
                if "not permitted" in str(problem):
                    pytest.skip(f"no namespaces here: {problem}")
                raise
            yield made
        finally:
            (root / "end").touch()
            child.stop(0)
