"""File systems that somebody damaged or made up, and ends in the middle: the appliance takes all of
it, and nothing of it stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import RestoreError
from drvm.core.units import KIB, MIB
from tests.appliance import Appliance
from tests.guest_disks import btrfs, ext4, new_image, ntfs, other_disk, part, small_tree, vfat, xfs
from tests.guest_files import Stored, place, stored_files, with_point

pytestmark = pytest.mark.long

LIMIT_S = 240.0
END_S = 30.0
FAMILIES = {"ext4": ext4, "xfs": xfs, "btrfs": btrfs, "ntfs": ntfs, "vfat": vfat}
SIZES_MIB = {"ext4": 32, "xfs": 320, "btrfs": 128, "ntfs": 16, "vfat": 32}


def spoil(image: Path, seed: int) -> None:
    """Random bytes over a part of the beginning, but not over what tells the family."""
    source = random.Random(seed)
    with image.open("r+b") as file:
        for _ in range(200):
            file.seek(source.randrange(2 * KIB, 2 * MIB))
            file.write(source.randbytes(source.randrange(1, 64)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """disk0 is well; of each family one is spoilt; the last is nothing at all."""
    directory = tmp_path_factory.mktemp("odd")
    image, _ = other_disk(directory)
    images = {"disk0": image}
    for seed, (family, make) in enumerate(FAMILIES.items()):
        tree = small_tree(directory / family)
        if family == "ntfs":
            shutil.rmtree(tree / "sub")
        made = make(part(tree, SIZES_MIB[family]), tree)
        spoil(made, seed)
        images[f"disk{len(images)}"] = made
    noise = new_image(directory / "noise.raw", 4 * MIB)
    noise.write_bytes(random.Random(99).randbytes(4 * MIB))
    images[f"disk{len(images)}"] = noise
    with stored_files(directory, images) as stored:
        yield stored


def test_btrfs_and_ntfs_are_read(odd: Stored) -> None:
    assert odd.read("/dev/disk0p1:/hello") == b"from butter\n"
    assert len(odd.read("/dev/disk0p1:/sub/random")) == 100_000
    assert odd.read("/dev/disk0p2:/hello") == b"from windows\n"


def test_spoilt_file_systems_end_in_errors_or_lists_and_harm_no_others(odd: Stored) -> None:
    for number in range(1, 7):
        try:
            for there, entry in odd.guest.walk(place(f"/dev/disk{number}:/")):
                if entry.mode & 0o170000 == 0o100000 and entry.size_bytes <= MIB:
                    for _ in odd.guest.read(there, entry.size_bytes):
                        pass
        except RestoreError as error:
            assert error.message
    assert odd.read("/dev/disk0p1:/hello") == b"from butter\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    directory = tmp_path_factory.mktemp("ends")
    tree = small_tree(directory / "root")
    return with_point(directory, {"disk0": ext4(part(tree, 32), tree)})


def test_files_that_damage_has_hit_are_named_and_the_others_come(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("one", "two"):
        (tree / name).write_bytes(random.Random(name).randbytes(8 * MIB))
    home = with_point(tmp_path / "drvm", {"disk0": ext4(part(tree, 32), tree)})
    packs = (tmp_path / "drvm/store/packs").rglob("*")
    largest = max((path for path in packs if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as pack:
        pack.seek(largest.stat().st_size // 4)
        pack.write(bytes(64 * KIB))
    output = tmp_path / "out"
    arguments = ("files", "get", "web1", "/dev/disk0:/", "--output", str(output))
    fetched = home.json(*arguments, expect=1)["fetched"]
    (failed,) = fetched["failed"]
    assert "Input/output error" in failed
    whole = "one" if "/two" in failed else "two"
    assert sorted(path.name for path in output.iterdir()) == sorted(["lost+found", whole])
    assert (output / whole).read_bytes() == (tree / whole).read_bytes()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, as sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="ends-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("moment", ["launch", "started"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_however_drvm_ends_nothing_is_left(
    home: Appliance, scratch: Path, moment: str, ending: signal.Signals
) -> None:
    argv = home.argv("-v", "files", "ls", "web1", "/dev/disk0:/", "--recursive")
    process = subprocess.Popen(
        argv,
        env={**home.env, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    sockets = wait_for_appliance(scratch)
    if moment == "started":
        for line in process.stderr:
            if b"appliance-started" in line:
                break
    process.send_signal(ending)
    process.stderr.close()
    process.wait(LIMIT_S)
    deadline_s = time.monotonic() + END_S
    while left(scratch, sockets):
        assert time.monotonic() < deadline_s, left(scratch, sockets)
        time.sleep(0.1)


def wait_for_appliance(scratch: Path) -> Path:
    """Until QEMU has been started; where libguestfs keeps its sockets."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        for command in commands():
            if str(scratch).encode() in command and b"/guestfsd.sock" in command:
                before = command.partition(b"/guestfsd.sock")[0]
                return Path(os.fsdecode(before.rpartition(b"path=")[2]))
        time.sleep(0.05)
    raise AssertionError("no appliance was started")


def left(scratch: Path, sockets: Path) -> list[str]:
    """Processes, directories of the appliance, sockets. What the NBD server leaves when drvm is
    killed is swept by the next export."""
    processes = [repr(command) for command in commands() if str(scratch).encode() in command]
    return [
        *(line for line in processes if "drvm.restore.guestfiles" in line or "qemu" in line),
        *(str(path) for path in scratch.glob("drvm-files-*")),
        *([str(sockets)] if sockets.exists() else []),
    ]


def commands() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue
