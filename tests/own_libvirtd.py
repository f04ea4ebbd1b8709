"""A libvirtd of the test's own, which may be killed: in namespaces of its own, on the same images
as the host's. It comes back by itself, as under a service manager."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
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

# a shell stays process 1 there: libvirtd does not reap what it does not know; /mnt stays in sight
# where mounts hide the directory of all this
_SCRIPT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
root=/mnt
mount --bind "$1" $root; shift
for place in "$@"; do mkdir -p /$place; mount --bind $root/$place /$place; done
set +e
[ ! -e $root/prepare ] || sh -e $root/prepare || exit 1
while [ ! -e $root/end ]; do
  [ -e $root/away ] || \
    libvirtd $(cat $root/switches) --config $root/libvirtd.conf --pid-file $root/libvirtd.pid
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
        os.kill(self.pid(), signal.SIGKILL)

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
            if self.child.returncode() is not None and "not permitted" in tail:
                pytest.skip(f"no namespaces here: {tail}")
            assert self.child.returncode() is None, tail
            assert _clock.monotonic_s() < deadline_s, tail
            _clock.sleep(0.1)

    def shell(self) -> int:
        """The namespaces' first process, as the host counts."""
        return self._children(self.child.pid)[0]

    def pid(self) -> int:
        for pid in self._children(self.shell()):
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
        uri = f"qemu+unix:///system?socket={root}/run/libvirt/libvirt-sock"
        with in_namespaces(processes, root, uri, _DIRECTORIES) as made:
            made.wait()
            yield made


@contextlib.contextmanager
def in_namespaces(
    processes: Processes,
    root: Path,
    uri: str,
    directories: Sequence[str],
    *,
    settings: str = "",
    switches: str = "",
    prepare: str = "",
) -> Iterator[OwnLibvirtd]:
    """A libvirtd that may not answer yet. ``directories``, relative to the root, are its own, kept
    in ``root``, which is /mnt there; ``prepare`` is a shell script that runs before it, and
    ``settings`` are lines of its config. Whatever runs there ends with the context."""
    for place in directories:
        (root / place).mkdir(parents=True, exist_ok=True)
    (root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
    local = 'unix_sock_group = "root"\nauth_unix_rw = "none"\n'
    (root / "libvirtd.conf").write_text(local + settings)
    (root / "switches").write_text(switches)
    if prepare:
        (root / "prepare").write_text(prepare)
    argv = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child"]
    argv += ["sh", "-c", _SCRIPT, "sh", str(root), *directories]
    child = processes.spawn(argv, log=root / "log", detach=True)
    try:
        yield OwnLibvirtd(uri, root, child, processes)
    finally:
        (root / "end").touch()
        child.stop(0)
