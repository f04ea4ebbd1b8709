"""A point's disks over NBD, as real clients see them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError, RestoreError
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.host.nbd import NbdReader, sweep_exports
from drvm.host.nbd_probe import nbd_answers
from drvm.repository.points import Point
from drvm.restore.served.hints import UNIT_BYTES, read_hint
from drvm.restore.served.server import Served
from drvm.restore.served.supervised import end_server, find_server, serving, start_server
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import take_image_point
from drvm.wiring.serving import service_of
from tests.appliance import Appliance, make_appliance

pytestmark = pytest.mark.skipif(
    subprocess.run(["nbdkit", "python", "--dump-plugin"], capture_output=True).returncode != 0,
    reason="needs nbdkit with its Python plugin",
)

SIZE = 100 * MIB + 5 * 512
LIMIT_S = 60.0


def content(seed: int) -> bytes:
    """Holes of all sizes, and data that begins and ends anywhere."""
    source = np.random.default_rng(seed)
    disk = bytearray(SIZE)
    for at in source.integers(0, SIZE - MIB, 60).tolist():
        length = int(source.integers(1, 400_000))
        disk[at : at + length] = source.bytes(length)
    disk[-1000:] = source.bytes(1000)
    return bytes(disk)


@dataclass(frozen=True)
class Stored:
    appliance: Appliance
    wiring: Wiring
    point: Point
    images: dict[str, Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    directory = tmp_path_factory.mktemp("served")
    appliance = make_appliance(directory, f"file://{directory}/store", None)
    images = {target: directory / f"{target}.raw" for target in ("disk0", "disk1")}
    for seed, path in enumerate(images.values()):
        path.write_bytes(content(seed))
    with appliance.wiring() as wiring:
        wiring.create_repository()
    with appliance.wiring() as wiring:
        files = [ImageFile(path, "raw") for path in images.values()]
        take_image_point(wiring, "disks", files, NoProgress())
        (point,) = wiring.repository().points().points
        yield Stored(appliance, wiring, point, images)


@pytest.fixture(scope="module")
def served(stored: Stored) -> Iterator[Served]:
    service = service_of(stored.wiring, stored.point)
    with serving(stored.wiring.processes, stored.wiring.clock, service) as served:
        yield served


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=LIMIT_S).stdout


def test_what_nbdcopy_reads_is_the_disk(stored, served, tmp_path):
    for target, image in stored.images.items():
        copy = tmp_path / f"{target}.raw"
        run("nbdcopy", served.uri(target), str(copy))
        assert copy.read_bytes() == image.read_bytes()


def test_the_extents_are_those_of_the_restored_image(stored, served, tmp_path):
    output = tmp_path / "restored"
    stored.appliance.drvm("restore", stored.point.id[:8], "--output", str(output))
    for target in stored.images:
        told = extents("--image-opts", f"driver=raw,file.driver=nbd,file.export={target},"
                       f"file.server.type=unix,file.server.path={served.socket}")  # fmt: skip
        assert told == extents("-f", "raw", str(output / f"{target}.raw"))
        assert len(told) > 20


def extents(*image: str) -> list[tuple[int, int, bool, bool]]:
    return [
        (entry["start"], entry["length"], entry["data"], entry["zero"])
        for entry in json.loads(run("qemu-img", "map", "--output=json", *image))
    ]


def test_the_command_serves_at_a_socket_until_ctrl_c_and_replaces_one_that_was_left(
    stored, tmp_path
):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    argv = stored.appliance.argv(
        "--json", "serve", stored.point.id[:8], "--disk", "disk1", "--socket", str(path)
    )
    with subprocess.Popen(argv, env=dict(stored.appliance.env), stdout=subprocess.PIPE) as drvm:
        assert drvm.stdout is not None
        told = json.loads("".join(iter(lambda: drvm.stdout.readline().decode(), "}\n")) + "}")
        (disk,) = told["served"]["disks"]
        assert (disk["target"], disk["size_bytes"]) == ("disk1", SIZE)
        run("nbdcopy", disk["uri"], str(tmp_path / "copy"))
        taken = stored.appliance.drvm("serve", "disks", "--socket", str(path), expect=2)
        drvm.send_signal(signal.SIGINT)
        assert drvm.wait(LIMIT_S) == 0
    assert "is there already" in taken.err
    assert not path.exists()
    assert (tmp_path / "copy").read_bytes() == stored.images["disk1"].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--disk", "vdz"), "has no disk vdz"),
        (("--listen", "::1"), "--listen needs --port"),
        (("--port", "1", "--listen", "example.org"), "is no IP address"),
        (("--port", "1", "--socket", "x"), "exclude each other"),
    ],
)
def test_what_can_not_be_served_is_refused(stored, arguments, said):
    result = stored.appliance.drvm("serve", "disks", *arguments, expect=2)
    assert said in result.err


def test_damage_is_an_error_of_the_disk_and_is_told_with_its_range(stored, tmp_path):
    directory = tmp_path / "damaged"
    shutil.copytree(stored.appliance.directory / "store", directory / "store")
    appliance = make_appliance(directory, f"file://{directory}/store", None)
    packs = sorted(directory.glob("store/packs/*"), key=lambda path: path.stat().st_size)
    with packs[-1].open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(bytes(64))
    with (
        appliance.wiring() as wiring,
        serving(wiring.processes, wiring.clock, service_of(wiring, stored.point)) as served,
    ):
        reader = {target: NbdReader(served.socket, target) for target in stored.images}
        wrong, failed = 0, []
        for target, image in stored.images.items():
            there = image.read_bytes()
            for at in range(0, SIZE - MIB, MIB):
                data = bytearray(MIB)
                try:
                    reader[target].read_into(at, memoryview(data))
                except HostError:
                    failed.append((target, at))
                else:
                    wrong += data != there[at : at + MIB]
        told = served.log.read_text()
    assert wrong == 0
    assert 1 <= len(failed) <= 3
    assert all(f"bytes {at} to {at + MIB} can't be read: pack" in told for _, at in failed)


def test_the_log_of_one_that_lives_long_is_not_swept_away(stored, tmp_path):
    """Its socket may be anywhere; where the log is gone, the server can't be started anew."""
    processes, clock = stored.wiring.processes, stored.wiring.clock
    service = service_of(stored.wiring, stored.point)
    with serving(processes, clock, service, socket=tmp_path / "socket") as served:
        os.utime(served.log.parent, (1, 1))
        sweep_exports(clock)
        assert served.log.exists()


def test_a_port_that_somebody_has_is_refused(stored):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = stored.appliance.drvm("serve", "disks", "--port", port, expect=2)
    assert "can't be opened" in result.err


def test_nobody_waits_for_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not nbd_answers(f"nbd://127.0.0.1:{silent.getsockname()[1]}/vda", 0.2)


def test_a_name_that_is_no_disk_of_the_point_is_refused(served):
    with pytest.raises(HostError):
        NbdReader(served.socket, "disk2")


def test_a_server_that_is_killed_is_started_anew(stored, served):
    (pid,) = servers_of(os.getpid())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: answers(served.uri("disk1")))


def answers(uri: str) -> bool:
    return subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode == 0


def test_a_server_ends_with_its_drvm(stored):
    script = (
        "import sys, pathlib\n"
        "from tests.appliance import Appliance\n"
        "from drvm.restore.served.supervised import serving\n"
        "from drvm.wiring.serving import service_of\n"
        f"appliance = Appliance(pathlib.Path({str(stored.appliance.directory)!r}), "
        f"{dict(stored.appliance.env)!r})\n"
        "with appliance.wiring() as wiring:\n"
        "    (point,) = wiring.repository().points().points\n"
        "    with serving(wiring.processes, wiring.clock, service_of(wiring, point)):\n"
        "        print('up', flush=True)\n"
        "        sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(stored.appliance.env),
    ) as drvm:
        assert drvm.stdout is not None and drvm.stdout.readline() == "up\n"
        (pid,) = servers_of(drvm.pid)
        drvm.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def eventually(true: Callable[[], bool]) -> None:
    clock, deadline_s = SystemClock(), SystemClock().monotonic_s() + LIMIT_S
    while not true():
        assert clock.monotonic_s() < deadline_s
        clock.sleep(0.1)


def test_a_server_on_its_own_outlives_who_started_it_and_is_started_anew(stored, tmp_path):
    script = (
        "import os, pathlib\n"
        "from tests.appliance import Appliance\n"
        "from drvm.restore.served.supervised import start_server\n"
        "from drvm.wiring.serving import service_of\n"
        f"appliance = Appliance(pathlib.Path({str(stored.appliance.directory)!r}), "
        f"{dict(stored.appliance.env)!r})\n"
        f"directory = pathlib.Path({str(tmp_path)!r})\n"
        "with appliance.wiring() as wiring:\n"
        "    (point,) = wiring.repository().points().points\n"
        "    service = service_of(wiring, point, ['disk1'], boot=True)\n"
        "    server = start_server(wiring.processes, wiring.clock, service, directory)\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=dict(stored.appliance.env),
    )
    keeper = find_server(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, str(keeper))
    uri = f"nbd+unix:///disk1?socket={tmp_path / 'socket'}"
    assert answers(uri)
    (nbdkit,) = servers_of(keeper)
    os.kill(nbdkit, signal.SIGKILL)
    eventually(lambda: answers(uri))
    service = service_of(stored.wiring, stored.point)
    with pytest.raises(RestoreError, match="runs in"):
        start_server(stored.wiring.processes, stored.wiring.clock, service, tmp_path)
    (nbdkit,) = servers_of(keeper)
    reader = NbdReader(tmp_path / "socket", "disk1")
    reader.read_into(0, memoryview(bytearray(2 * MIB)))
    reader.close()
    end_server(tmp_path, stored.wiring.clock)
    assert find_server(tmp_path) is None
    assert not Path(f"/proc/{nbdkit}").exists()
    assert not (tmp_path / "socket").exists()
    (hint,) = stored.wiring.cache_dir.glob("*/boots/*.disk1")  # for the next boot
    assert read_hint(hint, SIZE) == list(range(2 * MIB // UNIT_BYTES))


def test_a_server_that_can_not_start_says_why(stored, tmp_path):
    service = replace(service_of(stored.wiring, stored.point), order=b"{}")
    processes, clock = stored.wiring.processes, stored.wiring.clock
    with pytest.raises(RestoreError, match="did not start"), serving(processes, clock, service):
        pass
    with pytest.raises(RestoreError, match="did not start"):
        start_server(processes, clock, service, tmp_path)
    assert find_server(tmp_path) is None


def test_no_secret_stands_in_arguments_or_environment(stored, served):
    (pid,) = servers_of(os.getpid())
    passphrase = (stored.appliance.directory / "passphrase").read_bytes().strip()
    for name in ("cmdline", "environ"):
        assert passphrase not in Path(f"/proc/{pid}/{name}").read_bytes()


def servers_of(parent: int) -> list[int]:
    """The nbdkits that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = status.read_text().rpartition(")")
        except OSError:
            continue
        state, above = fields.split()[:2]
        if name.endswith("(nbdkit") and int(above) == parent and state != "Z":
            found.append(int(status.parent.name))
    return found
