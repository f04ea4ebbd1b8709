"""What it costs to read a point over NBD, without restoring it: ``python -m bench.serve``.

A disk of half random, half repeated bytes lies on an S3 server on loopback; each request to that
can be delayed, by a proxy between. The server is nbdkit with drvm's script, its cache of ids is
warm and all else is cold at the start of each line. Beside it: the same disk as a raw file served
by nbdkit's own file plugin, and a restore of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench import product
from bench.harness import Figure, print_table
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.core.units import GIB, KIB, MIB
from drvm.host.nbd import NbdReader
from drvm.lab.services import S3Server, seaweedfs
from drvm.restore.served.server import Served
from drvm.restore.served.supervised import serving
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import take_image_point
from drvm.wiring.serving import service_of
from tests.appliance import Appliance, make_appliance

Open = Callable[[], contextlib.AbstractContextManager[Served]]

_TICKS_S = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 900.0
_READS = 300


def make_disk(path: Path, size_mib: int) -> None:
    source = np.random.default_rng(1)
    with path.open("wb") as stream:
        for _ in range(size_mib):
            blocks = np.repeat(source.integers(0, 256, (256, 64), dtype=np.uint8), 64, axis=1)
            blocks[:, :2048] = source.integers(0, 256, (256, 2048), dtype=np.uint8)
            stream.write(blocks.tobytes())


class SlowWay:
    """A TCP port that leads to another; what a client sends arrives ``delay_s`` later."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._to = port
        self._delay_s = delay_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((client, server, self._delay_s), (server, client, 0.0)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            time.sleep(delay_s)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclasses.dataclass(frozen=True)
class Stage:
    appliance: Appliance
    wiring: Wiring
    image: Path


@contextlib.contextmanager
def staged(scratch: Path, server: S3Server, size_mib: int) -> Iterator[Stage]:
    image = scratch / "disk.raw"
    make_disk(image, size_mib)
    appliance = make_appliance(scratch / "drvm", f"s3://{server.bucket}/bench", server)
    os.environ.update({k: v for k, v in appliance.env.items() if k.startswith("AWS_")})
    with appliance.wiring() as wiring:
        wiring.create_repository()
    with appliance.wiring() as wiring:
        take_image_point(wiring, "disk", [ImageFile(image, "raw")], NoProgress())
        yield Stage(appliance, wiring, image)


@contextlib.contextmanager
def served(stage: Stage, delay_s: float) -> Iterator[Served]:
    named = stage.wiring.settings.needed_repository()
    host, _, port = (named.endpoint or "").rpartition(":")
    slow = dataclasses.replace(named, endpoint=f"{host}:{SlowWay(int(port), delay_s).port}")
    settings = dataclasses.replace(stage.wiring.settings, repository=slow)
    (point,) = stage.wiring.repository().points().points
    with (
        Wiring(
            settings,
            clock=SystemClock(),
            processes=SystemProcesses(),
            passphrase=stage.wiring.passphrase,
        ) as wiring,
        serving(wiring.processes, wiring.clock, service_of(wiring, point)) as server,
    ):
        yield server


def cpu_of_nbdkits() -> float:
    """Seconds of the nbdkits that this process has started."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            fields = rest.split()
            if name.endswith("(nbdkit") and int(fields[1]) == os.getpid():
                total += (int(fields[11]) + int(fields[12])) / _TICKS_S
    return total


def whole(uri: str, size_bytes: int) -> tuple[float, float]:
    """(MiB/s, CPU seconds of the server per GiB), read by nbdcopy."""
    began_s, cpu_s = time.monotonic(), cpu_of_nbdkits()
    SystemProcesses().run(["nbdcopy", uri, "null:"], timeout_s=_TIMEOUT_S)
    wall_s = time.monotonic() - began_s
    return size_bytes / MIB / wall_s, (cpu_of_nbdkits() - cpu_s) / (size_bytes / GIB)


def random_ms(path: Path, export: str, threads: int, span_bytes: int, seed: int) -> float:
    """Median milliseconds of a read of 4 KiB anywhere in the first ``span_bytes``."""
    source = random.Random(seed)
    blocks = span_bytes // (4 * KIB)
    places = [source.randrange(blocks) * 4 * KIB for _ in range(_READS)]

    def reads(mine: list[int]) -> list[float]:
        reader, taken = NbdReader(path, export), []
        target = memoryview(bytearray(4 * KIB))
        for place in mine:
            began_s = time.monotonic()
            reader.read_into(place, target)
            taken.append((time.monotonic() - began_s) * 1000)
        reader.close()
        return taken

    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(reads, [places[at::threads] for at in range(threads)])
        return statistics.median([ms for part in parts for ms in part])


def lines(
    name: str, open_it: Callable[[], contextlib.AbstractContextManager[Served]], size: int
) -> list[Figure]:
    found = []
    with open_it() as server:
        (export,) = server.exports.values()
        rate, cpu = whole(server.uri(export), size)
        found += [Figure(f"{name}: nbdcopy", rate, unit="MiB/s")]
        found += [Figure(f"{name}: nbdcopy, the server's CPU", cpu, unit="s/GiB")]
    for threads in (1, 8):
        with open_it() as server:
            (export,) = server.exports.values()
            cold = random_ms(server.socket, export, threads, size, threads)
            found += [Figure(f"{name}: 4 KiB anywhere, {threads} at once", cold, unit="ms")]
            random_ms(server.socket, export, threads, 16 * MIB, 7)
            warm = random_ms(server.socket, export, threads, 16 * MIB, 7)
            found += [Figure(f"{name}: 4 KiB that are kept, {threads} at once", warm, unit="ms")]
    return found


@contextlib.contextmanager
def plain_file(image: Path) -> Iterator[Served]:
    """nbdkit's own, on the raw image."""
    from drvm.restore.served.server import Place

    directory = Path(tempfile.mkdtemp())
    place = Place(directory / "socket", directory / "log")
    argv = ["nbdkit", "-f", "-r", "-t", "16", f"--unix={place.socket}", "file", str(image)]
    child = SystemProcesses().spawn(argv)
    while not place.socket.exists():
        time.sleep(0.05)
    try:
        yield Served(place, {"disk0": "disk0"})
    finally:
        child.stop()
        shutil.rmtree(directory)


def restored(stage: Stage, scratch: Path, size: int) -> Figure:
    (point,) = stage.wiring.repository().points().points
    began_s = time.monotonic()
    product.restore(stage.wiring.repository(), point.manifest, scratch / "restored.raw")
    return Figure("restore to a file", size / MIB / (time.monotonic() - began_s), unit="MiB/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="room for four times the disk")
    parser.add_argument("--mib", type=int, default=512, help="the disk's size")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=options.dir))
    figures = []
    (scratch / "weed").mkdir()
    try:
        with (
            seaweedfs(scratch / "weed", SystemProcesses(), SystemClock()) as server,
            staged(scratch, server, options.mib) as stage,
        ):
            size = options.mib * MIB
            figures += lines("file", lambda: plain_file(stage.image), size)
            figures.append(restored(stage, scratch, size))
            for delay_s in (0.0, 0.02):
                title = f"drvm, {delay_s * 1000:.0f} ms more a request"
                figures += lines(title, lambda: served(stage, delay_s), size)  # noqa: B023
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print_table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
