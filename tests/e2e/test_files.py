"""Files out of a point in the repository, by a real appliance, from the file systems of guests."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import RestoreError
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.restore.guestfiles.fetch import FetchPlan, plan_fetch, run_fetch
from tests.guest_disks import ODD_NAMES, linux_disks
from tests.guest_files import Stored, place, stored_files

ROOT = "/dev/disk0p1:"


@pytest.fixture(scope="module")
def trees() -> dict[str, Path]:
    """What is in which file system; filled by ``stored``."""
    return {}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, trees: dict[str, Path]) -> Iterator[Stored]:
    """One appliance for all tests: it takes longer to start than they do."""
    directory = tmp_path_factory.mktemp("files")
    images, made = linux_disks(directory)
    trees.update(made)
    with stored_files(directory, images) as stored:
        yield stored


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_file_systems_of_all_disks_are_found(stored: Stored) -> None:
    found = {fs.device: (fs.type, fs.label) for fs in stored.running.file_systems()}
    assert found == {
        b"/dev/sda1": (b"ext4", b"root"),
        b"/dev/sda2": (b"xfs", b"data"),
        b"/dev/sdb1": (b"LVM2_member", b""),
        b"/dev/sdb2": (b"vfat", b""),
        b"/dev/sdb3": (b"crypto_LUKS", b""),
        b"/dev/vg/home": (b"ext4", b""),
        b"/dev/vg/srv": (b"xfs", b""),
    }


@pytest.mark.long
def test_an_operating_system_is_found_and_seen_as_it_mounts_itself(
    stored: Stored, trees: dict[str, Path]
) -> None:
    found = stored.guest.found()
    (system,) = found.systems
    assert (system.root, system.product) == ("/dev/disk0p1", "Fedora Linux 38")
    assert system.hostname == "web1"
    mounted = {fs.device: fs.mount_points for fs in found.file_systems if fs.mount_points}
    assert mounted == {"/dev/disk0p1": ("/",), "/dev/disk0p2": ("/data",)}
    assert stored.read("/etc/fstab") == (trees["/dev/disk0p1"] / "etc/fstab").read_bytes()
    assert stored.read("/data/hello") == b"from data\n"
    data = trees["/dev/disk0p2"] / "sub/random"
    assert digest(stored.read("/data/sub/random")) == digest(data.read_bytes())


def test_every_file_of_every_file_system_is_what_it_was(
    stored: Stored, trees: dict[str, Path], tmp_path: Path
) -> None:
    for number, (device, tree) in enumerate(trees.items()):
        output = tmp_path / str(number)
        plan = planned(stored, output, f"{device}:/")
        run_fetch(plan, stored.guest, NoProgress())
        for path in tree.rglob("*"):
            copy = output / path.relative_to(tree)
            if stat.S_ISREG(path.lstat().st_mode):
                assert digest(copy.read_bytes()) == digest(path.read_bytes()), path
            elif path.is_dir() and not path.is_symlink():
                assert copy.is_dir()


def planned(stored: Stored, output: Path, *texts: str) -> FetchPlan:
    return plan_fetch(stored.guest, [place(text) for text in texts], output)


def test_any_name_that_linux_takes_is_listed_and_read(stored: Stored) -> None:
    names = {entry.name for entry in stored.guest.entries(place(f"{ROOT}/var"))}
    assert names == {*ODD_NAMES, b"log", b"pipe", b"zero", b"su", b"sparse"}
    for name in ODD_NAMES:
        assert stored.read(ROOT.encode() + b"/var/" + name) == name


def test_links_lead_inside_the_guest_and_their_circles_end(stored: Stored) -> None:
    assert stored.read(f"{ROOT}/absolute") == b"web1\n"
    assert stored.read(f"{ROOT}/near") == b"web1\n"
    with pytest.raises(RestoreError, match="No such file"):
        stored.guest.entry(place(f"{ROOT}/out"))
    with pytest.raises(RestoreError, match="Too many levels of symbolic links"):
        stored.guest.entry(place(f"{ROOT}/loop1"))


def test_a_fetched_tree_has_nothing_that_does_harm(stored: Stored, tmp_path: Path) -> None:
    plan = planned(stored, tmp_path, f"{ROOT}/var")
    fetched = run_fetch(plan, stored.guest, NoProgress())
    assert sorted(line.rpartition(":")[0] for line in plan.left_out) == [
        f"{ROOT}/var/pipe",
        f"{ROOT}/var/zero",
    ]
    assert stat.S_IMODE((tmp_path / "var/su").stat().st_mode) & 0o7000 == 0
    sparse = (tmp_path / "var/sparse").stat()
    assert sparse.st_size == 60 * MIB and sparse.st_blocks * 512 < 4 * MIB
    assert fetched.written_bytes < 4 * MIB and fetched.failed == ()


def test_what_is_encrypted_is_named_so(stored: Stored) -> None:
    with pytest.raises(RestoreError, match="/dev/disk1p3 is encrypted with LUKS"):
        stored.guest.entry(place("/dev/disk1p3:/"))


def test_what_is_no_file_system_is_told_by_its_name(stored: Stored) -> None:
    with pytest.raises(RestoreError, match="/dev/disk1p1 can't be mounted: unknown filesystem"):
        stored.guest.entry(place("/dev/disk1p1:/"))
