"""What the servers beside a backup cost: qemu-nbd, which reads qcow2, and an S3 server on loopback.

A backup is compared with the floor where neither takes part; here their CPU seconds stand apart
from drvm's own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import floors, product
from bench.harness import Bench, Cost, Figure, Run, by_turns, told
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.units import GIB
from drvm.lab.services import S3Server, seaweedfs
from drvm.repository.repository import Repository
from drvm.store.s3 import S3Store

_TICKS_S = os.sysconf("SC_CLK_TCK")
_LIMIT_S = 600.0


def apart(bench: Bench) -> list[Figure]:
    image = bench.disk("dense")
    qcow2 = bench.scratch / "dense.qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(qcow2)]
    SystemProcesses().run(argv, timeout_s=_LIMIT_S)
    with _s3(bench.scratch / "weed") as server:
        stage = _Stage(image, qcow2, server, bench.scratch)
        costs = by_turns(stage.cases, bench.repeat, stage.prepare)
    return figures(costs, sum(map(len, floors.pieces(image, floors.BLOCK_BYTES))) / GIB)


class _Stage:
    """Each run meets a repository that is new and empty."""

    def __init__(self, image: Path, qcow2: Path, server: S3Server, scratch: Path) -> None:
        self._server = server
        self._weed = _pid_of(scratch / "weed")
        self._repository: Repository
        self.cases: dict[str, Run] = {
            "raw file, null store": lambda: self._measured(image, "raw"),
            "qcow2 by qemu-nbd, null store": lambda: self._measured(qcow2, "qcow2"),
            "raw file, S3": lambda: self._measured(image, "raw"),
        }

    def prepare(self, case: str) -> None:
        store = product.NullStore()
        if case.endswith("S3"):
            prefix, endpoint = secrets.token_hex(4), self._server.endpoint
            made = S3Store(self._server.bucket, prefix, endpoint=endpoint)
            self._repository = Repository.create(made, product.PASSPHRASE)
        else:
            self._repository = Repository.create(store, product.PASSPHRASE)

    def _measured(self, image: Path, form: str) -> dict[str, float]:
        """qemu-nbd is a child of this process, the S3 server is not."""
        before_s = _cpu_s(self._weed)
        product.back_up(self._repository, image, "a", form)
        own, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        servers_s = children.ru_utime + children.ru_stime + _cpu_s(self._weed) - before_s
        return {"own_s": own.ru_utime + own.ru_stime, "servers_s": servers_s}


def figures(costs: Mapping[str, Sequence[Cost]], gib: float) -> list[Figure]:
    return [
        Figure(f"{case}: {who}", told(runs, field) / gib, None, "cpu-s/GiB")
        for case, runs in costs.items()
        for who, field in (("drvm", "own_s"), ("servers", "servers_s"))
    ]


@contextlib.contextmanager
def _s3(directory: Path) -> Iterator[S3Server]:
    directory.mkdir()
    with seaweedfs(directory, SystemProcesses(), SystemClock()) as server:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield server


def _pid_of(directory: Path) -> int:
    """Of the server that keeps its data there."""
    wanted = f"-dir={directory}".encode()
    (found,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if wanted in path.read_bytes().split(b"\0")
    )
    return found


def _cpu_s(pid: int) -> float:
    """proc(5): user and system time are fields 14 and 15, behind a name in parentheses."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S
