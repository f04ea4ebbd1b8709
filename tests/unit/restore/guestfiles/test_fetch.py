"""What a guest's files become on the host: nothing outside, nothing replaced, nothing half."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from drvm.core.errors import PreflightFailed, RestoreError
from drvm.core.progress import NoProgress
from drvm.restore.guestfiles import fetch as fetching
from drvm.restore.guestfiles.fetch import Fetched, plan_fetch, run_fetch
from drvm.restore.guestfiles.names import parse_place
from drvm.restore.guestfiles.view import GuestFiles
from drvm.restore.targets.partial import SUFFIX
from tests.fakes.tree_appliance import TreeAppliance

MODE = 0o777 & ~0o022


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def appliance() -> TreeAppliance:
    appliance = TreeAppliance()
    for path in (b"/etc", b"/etc/deep", b"/etc/deep/er"):
        appliance.directory(path)
    appliance.file(b"/etc/hosts", b"127.0.0.1 localhost\n")
    appliance.file(b"/etc/deep/er/caf\xe9\n", b"odd")
    return appliance


def fetch(appliance: TreeAppliance, output: Path, *paths: bytes, preserve=False) -> Fetched:
    guest = GuestFiles(appliance, ["vda"])
    plan = plan_fetch(guest, [parse_place(path) for path in paths], output)
    return run_fetch(plan, guest, NoProgress(), preserve=preserve)


def test_a_tree_comes_with_all_that_is_in_it(appliance, tmp_path):
    fetched = fetch(appliance, tmp_path / "out", b"/etc")
    assert (tmp_path / "out/etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert (
        Path(os.fsdecode(b"%s/out/etc/deep/er/caf\xe9\n" % bytes(tmp_path))).read_bytes() == b"odd"
    )
    assert (fetched.files, fetched.directories, fetched.failed) == (2, 3, ())


def test_the_root_comes_without_a_directory_of_its_own(appliance, tmp_path):
    fetch(appliance, tmp_path, b"/dev/vda1:/")
    assert (tmp_path / "etc/hosts").exists()


def test_files_keep_their_times_and_modes_but_not_what_makes_programs_run_as_others(
    appliance, tmp_path
):
    appliance.file(b"/etc/su", b"#!", mode=0o6777)
    fetch(appliance, tmp_path, b"/etc/su")
    status = (tmp_path / "su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1_700_000_000)


def test_a_directory_that_nobody_may_write_to_is_filled_first(appliance, tmp_path):
    appliance.directory(b"/etc", mode=0o500)
    fetch(appliance, tmp_path, b"/etc")
    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o500
    (tmp_path / "etc").chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_come_only_where_they_are_asked_for(appliance, tmp_path):
    appliance.file(b"/etc/mail", b"", mode=0o4666, uid=1234, gid=99)
    fetch(appliance, tmp_path / "plain", b"/etc/mail")
    fetch(appliance, tmp_path / "kept", b"/etc/mail", preserve=True)
    plain, kept = (tmp_path / "plain/mail").stat(), (tmp_path / "kept/mail").stat()
    assert (plain.st_uid, kept.st_uid, kept.st_gid) == (os.geteuid(), 1234, 99)
    assert (stat.S_IMODE(plain.st_mode), stat.S_IMODE(kept.st_mode)) == (0o644, 0o666)


def test_zeroes_become_holes(appliance, tmp_path):
    data = bytes(5_000_000) + b"x" * 5000 + bytes(3_000_001)
    appliance.file(b"/etc/sparse", data)
    fetched = fetch(appliance, tmp_path, b"/etc/sparse")
    copy = tmp_path / "sparse"
    assert copy.read_bytes() == data
    assert fetched.written_bytes <= 16384 and copy.stat().st_blocks * 512 <= 65536


def test_links_come_where_they_can_not_lead_out(appliance, tmp_path):
    appliance.link(b"/etc/deep/up", b"../hosts")
    appliance.link(b"/etc/absolute", b"/etc/shadow")
    appliance.link(b"/etc/deep/out", b"../../../root/.ssh/authorized_keys")
    guest = GuestFiles(appliance, ["vda"])
    plan = plan_fetch(guest, [parse_place(b"/etc")], tmp_path)
    run_fetch(plan, guest, NoProgress())
    assert (tmp_path / "etc/deep/up").readlink() == Path("../hosts")
    left_out = [line.split(":")[0] for line in plan.left_out]
    assert left_out == ["/etc/absolute", "/etc/deep/out"]
    assert not os.path.lexists(tmp_path / "etc/absolute")
    assert not os.path.lexists(tmp_path / "etc/deep/out")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0])
def test_devices_pipes_and_sockets_are_left_out(appliance, tmp_path, kind):
    appliance.put(b"/etc/odd", kind | 0o666)
    guest = GuestFiles(appliance, ["vda"])
    plan = plan_fetch(guest, [parse_place(b"/etc")], tmp_path)
    run_fetch(plan, guest, NoProgress())
    assert plan.left_out == ("/etc/odd: a device, pipe or socket",)
    assert not os.path.lexists(tmp_path / "etc/odd")


@pytest.mark.parametrize("what", ["file", "directory", "dangling link"])
def test_nothing_that_is_there_is_replaced(appliance, tmp_path, what):
    there = tmp_path / "hosts"
    if what == "file":
        there.write_text("mine")
    elif what == "directory":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PreflightFailed) as caught:
        fetch(appliance, tmp_path, b"/etc/hosts")
    assert caught.value.problems == (f"{there} exists, and nothing is overwritten",)
    assert not (tmp_path / "elsewhere").exists()


def test_what_comes_to_be_there_meanwhile_is_not_replaced_either(appliance, tmp_path):
    guest = GuestFiles(appliance, ["vda"])
    plan = plan_fetch(guest, [parse_place(b"/etc/hosts")], tmp_path)
    (tmp_path / "hosts").write_text("mine")
    with pytest.raises(RestoreError, match="can't be written: File exists"):
        run_fetch(plan, guest, NoProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]
    assert (tmp_path / "hosts").read_text() == "mine"


def test_a_link_that_takes_the_place_of_a_directory_is_not_followed(appliance, tmp_path):
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    guest = GuestFiles(appliance, ["vda"])
    plan = plan_fetch(guest, [parse_place(b"/etc")], output)
    made = os.mkdir

    def swap(name, mode, *, dir_fd=None):
        made(name, mode, dir_fd=dir_fd)
        if name == b"deep":
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(elsewhere, name, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RestoreError):
        patch.setattr(os, "mkdir", swap)
        run_fetch(plan, guest, NoProgress())
    assert list(elsewhere.iterdir()) == []


def test_two_files_of_one_name_are_refused(appliance, tmp_path):
    appliance.file(b"/etc/deep/hosts", b"")
    with pytest.raises(PreflightFailed) as caught:
        fetch(appliance, tmp_path, b"/etc/hosts", b"/etc/deep/hosts")
    assert caught.value.problems == ("two of the paths would both be hosts",)


def test_what_has_no_room_is_refused_before_anything_is_written(appliance, tmp_path):
    appliance.put(b"/etc/big", stat.S_IFREG, size_bytes=1 << 43, used_bytes=1 << 43)
    with pytest.raises(PreflightFailed) as caught:
        fetch(appliance, tmp_path / "out", b"/etc")
    assert "are needed" in caught.value.problems[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_can_not_be_read_is_told_and_the_others_come(appliance, tmp_path):
    appliance.file(b"/etc/bad", b"abc")
    appliance.unreadable.add(b"/etc/bad")
    fetched = fetch(appliance, tmp_path, b"/etc")
    assert fetched.failed == ("/etc/bad: Input/output error",)
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["deep", "hosts"]


def test_the_partial_file_of_a_killed_run_is_removed_by_the_next(appliance, tmp_path):
    (tmp_path / f".0123456789abcdef{SUFFIX}").write_bytes(b"half")
    fetch(appliance, tmp_path, b"/etc/hosts")
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def test_the_partial_file_of_a_file_in_a_directory_is_where_the_next_run_looks(
    appliance, tmp_path, monkeypatch
):
    places = []
    fill = fetching._Fetch._fill

    def look(self, item, descriptor):
        places.extend(path.parent for path in tmp_path.rglob(f".*{SUFFIX}"))
        fill(self, item, descriptor)

    monkeypatch.setattr(fetching._Fetch, "_fill", look)
    fetch(appliance, tmp_path, b"/etc")
    assert places == [tmp_path, tmp_path]


def test_a_file_system_without_hard_links_gets_whole_files_too(appliance, tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fetch(appliance, tmp_path, b"/etc/hosts")
    assert (tmp_path / "hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]
