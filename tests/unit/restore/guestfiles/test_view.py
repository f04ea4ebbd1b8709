"""Which file systems are looked at, and what their listings may hold."""

from __future__ import annotations

import stat

import msgspec
import pytest

from drvm.core.errors import RestoreError
from drvm.restore.guestfiles import view
from drvm.restore.guestfiles.names import Place, parse_place
from drvm.restore.guestfiles.view import GuestFiles
from drvm.restore.guestfiles.wire import PAGE_NAMES, FileSystem
from tests.fakes.tree_appliance import DEBIAN, EXT4, TreeAppliance

ROOT = Place(None, b"/")
LUKS = FileSystem(b"/dev/sda1", b"crypto_LUKS", b"", b"", 1 << 30)
XFS = FileSystem(b"/dev/sdb1", b"xfs", b"data", b"", 1 << 30)
SWAP = FileSystem(b"/dev/sda2", b"swap", b"", b"", 1 << 30)


def guest(appliance: TreeAppliance) -> GuestFiles:
    return GuestFiles(appliance, ["vda", "vdb"])


def test_file_systems_are_told_with_the_guests_names_and_mount_points():
    found = guest(TreeAppliance(file_systems=(EXT4, XFS))).found()
    told = [(fs.device, fs.type, fs.label, fs.mount_points) for fs in found.file_systems]
    assert told == [("/dev/vda1", "ext4", "root", ("/",)), ("/dev/vdb1", "xfs", "data", ())]
    assert [(system.root, system.product) for system in found.systems] == [
        ("/dev/vda1", "Debian 12")
    ]


def test_a_path_without_a_device_is_seen_as_the_guest_mounts_it():
    mounts = ((b"/dev/sda1", b"/"), (b"/dev/sdb1", b"/data"))
    appliance = TreeAppliance((msgspec.structs.replace(DEBIAN, mounts=mounts),), (EXT4, XFS))
    assert guest(appliance).entry(ROOT).mode == stat.S_IFDIR | 0o755
    assert appliance.mounted == [mounts]


def test_a_device_is_mounted_alone_and_without_a_look_at_the_others():
    appliance = TreeAppliance(systems=None, file_systems=(EXT4, XFS))
    list(guest(appliance).entries(parse_place(b"/dev/vdb1:/")))
    assert appliance.mounted == [((b"/dev/sdb1", b"/"),)]


def test_the_only_file_system_needs_no_name_where_there_is_no_system():
    appliance = TreeAppliance((), (SWAP, XFS))
    guest(appliance).entry(ROOT)
    assert appliance.mounted == [((b"/dev/sdb1", b"/"),)]


@pytest.mark.parametrize(
    ("systems", "file_systems", "words"),
    [
        ((), (EXT4, XFS), "no operating system was found, but 2 file systems"),
        ((), (), "no operating system was found, but 0 file systems"),
        ((DEBIAN, DEBIAN), (EXT4, XFS), "2 operating systems were found"),
        ((), (LUKS,), "/dev/vda1 is encrypted with LUKS"),
    ],
)
def test_where_it_is_not_clear_which_is_meant_the_choice_is_told(systems, file_systems, words):
    with pytest.raises(RestoreError, match=words) as caught:
        guest(TreeAppliance(systems, file_systems)).entry(ROOT)
    assert caught.value.hint


def test_an_encrypted_device_is_named_as_one():
    with pytest.raises(RestoreError, match="encrypted with LUKS"):
        guest(TreeAppliance((), (LUKS, XFS))).entry(parse_place(b"/dev/vda1:/"))


def test_a_device_that_is_not_there_is_told_by_the_guests_name():
    with pytest.raises(RestoreError, match="/dev/vdb7 can't be mounted: no such device"):
        guest(TreeAppliance()).entry(parse_place(b"/dev/vdb7:/"))


def test_a_subvolume_is_told_beside_what_it_is_part_of():
    system = msgspec.structs.replace(DEBIAN, mounts=((b"btrfsvol:/dev/sda1/@", b"/"),))
    found = guest(TreeAppliance((system,))).found()
    assert [(fs.device, fs.mount_points) for fs in found.file_systems] == [
        ("/dev/vda1", ()),
        ("btrfsvol:/dev/vda1/@", ("/",)),
    ]


def test_a_large_directory_comes_whole_and_in_order():
    appliance = TreeAppliance()
    names = [f"{number:06}".encode() for number in range(2 * PAGE_NAMES + 1)]
    for name in reversed(names):
        appliance.file(b"/" + name, b"")
    assert [entry.name for entry in guest(appliance).entries(ROOT)] == names


@pytest.mark.parametrize("name", [b"..", b"a/b", b"", b"x" * 256])
def test_a_name_that_can_not_be_one_ends_the_listing(name):
    appliance = TreeAppliance()
    appliance.put(b"/x", stat.S_IFREG, name=name)
    with pytest.raises(RestoreError, match="a name that can't be one"):
        list(guest(appliance).entries(ROOT))


def test_a_tree_may_be_deeper_than_python_calls_itself():
    appliance, path = TreeAppliance(), b""
    for _ in range(2040):
        path += b"/d"
        appliance.directory(path)
    assert sum(1 for _ in guest(appliance).walk(ROOT)) == 2040


def test_what_is_too_deep_to_be_reached_is_told():
    appliance, path = TreeAppliance(), b""
    for _ in range(2060):
        path += b"/d"
        appliance.directory(path)
    looked = guest(appliance)
    assert sum(1 for _ in looked.walk(ROOT)) < 2060
    assert "its path is too long" in looked.problems[0]


def test_a_tree_whose_paths_and_links_would_fill_the_memory_is_refused(monkeypatch):
    appliance = TreeAppliance()
    for number in range(20):
        appliance.link(b"/%02d" % number, b"x" * 97)
    monkeypatch.setattr(view, "_MAX_WALKED_BYTES", 2000)
    assert len(list(guest(appliance).walk(ROOT, targets=True))) == 20
    appliance.file(b"/more", b"")
    with pytest.raises(RestoreError, match="the paths of the files take more than"):
        list(guest(appliance).walk(ROOT, targets=True))


def test_a_directory_that_can_not_be_listed_does_not_hide_the_others():
    appliance = TreeAppliance()
    appliance.directory(b"/a")
    appliance.file(b"/b", b"")
    appliance.unreadable.add(b"/a")
    looked = guest(appliance)
    assert [place.path for place, _ in looked.walk(ROOT)] == [b"/a", b"/b"]
    assert looked.problems == ["/a: Input/output error"]


def test_a_file_that_ends_before_its_size_is_no_file():
    appliance = TreeAppliance()
    appliance.file(b"/a", b"abc")
    with pytest.raises(RestoreError, match="ends after 3 of 10 bytes"):
        list(guest(appliance).read(Place(None, b"/a"), 10))
