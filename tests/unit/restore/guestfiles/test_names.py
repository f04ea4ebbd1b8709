"""Devices as guest and appliance call them, paths, and links that stay where they are made."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import UsageError
from drvm.restore.guestfiles.names import (
    Place,
    appliance_device,
    guest_device,
    is_file_name,
    parse_place,
    stays_inside,
)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"/etc/hosts", Place(None, b"/etc/hosts")),
        (b"/", Place(None, b"/")),
        (b"//etc/./hosts/", Place(None, b"/etc/hosts")),
        (b"/dev/vda1:/etc/hosts", Place(b"/dev/vda1", b"/etc/hosts")),
        (b"/dev/vg/root:/", Place(b"/dev/vg/root", b"/")),
        (b"btrfsvol:/dev/sda2/@home:/x", Place(b"btrfsvol:/dev/sda2/@home", b"/x")),
        (b"/dev/shm", Place(None, b"/dev/shm")),
        (b"/caf\xe9:/x", Place(None, b"/caf\xe9:/x")),
    ],
)
def test_a_path_may_name_the_file_system_that_it_is_on(text, place):
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text",
    [b"", b"etc/hosts", b"/etc/../x", b"/a\0b", b"/" + b"x" * 256, b"/x" * 3000],
)
def test_what_is_no_path_in_a_guest_is_refused(text):
    with pytest.raises(UsageError):
        parse_place(text)


@pytest.mark.parametrize(
    ("targets", "guests", "appliances"),
    [
        (["vda"], b"/dev/vda", b"/dev/sda"),
        (["vda", "vdb"], b"/dev/vdb12", b"/dev/sdb12"),
        (["sdb", "sda"], b"/dev/sda1", b"/dev/sdb1"),
        (["disk0", "disk1"], b"/dev/disk1", b"/dev/sdb"),
        (["disk0", "disk1"], b"/dev/disk1p2", b"/dev/sdb2"),
        (["vda"], b"/dev/vg/vda1", b"/dev/vg/vda1"),
        (["vda"], b"btrfsvol:/dev/vda1/@home", b"btrfsvol:/dev/sda1/@home"),
        (["x"] * 27 + ["vda"], b"/dev/vda3", b"/dev/sdab3"),
    ],
)
def test_devices_have_the_names_that_the_guest_gives_them(targets, guests, appliances):
    assert appliance_device(guests, targets) == appliances
    assert guest_device(appliances, targets) == guests


def test_a_device_that_no_disk_has_stays_what_it_is():
    assert appliance_device(b"/dev/vdc1", ["vda"]) == b"/dev/vdc1"
    assert guest_device(b"/dev/sdb1", ["vda"]) == b"/dev/sdb1"


@given(st.integers(0, 300), st.integers(0, 300))
def test_each_of_many_disks_is_told_from_the_others(index, number):
    targets = [f"vd{i}x" for i in range(301)]
    device = f"/dev/vd{index}x{number or ''}".encode()
    assert guest_device(appliance_device(device, targets), targets) == device


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_what_is_no_name_is_none(name):
    assert not is_file_name(name)


@pytest.mark.parametrize("name", [b"a", b"...", b"\n\x1b[2J", b"\xff", b"-rf", b"x" * 255])
def test_whatever_linux_takes_for_a_name_is_one(name):
    assert is_file_name(name)


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        (b"a/b", 0, True),
        (b"../a", 1, True),
        (b"../a", 0, False),
        (b"./../../a", 2, True),
        (b"a/../b", 3, False),
        (b"/a", 9, False),
        (b"", 0, False),
        (b"a\0", 0, False),
        (b"..", 1, True),
    ],
)
def test_a_link_may_go_up_only_first_and_not_too_far(target, depth, inside):
    assert stays_inside(target, depth) is inside


_DIRECTORIES = ("a", "b", "a/a", "a/b")
_PARTS = st.lists(st.sampled_from(["a", "b", "link", "..", "."]), min_size=1, max_size=5)


@given(st.tuples(*(_PARTS for _ in _DIRECTORIES)))
def test_links_that_stay_inside_lead_nowhere_else_together(targets):
    with tempfile.TemporaryDirectory() as above:
        root = Path(above).resolve() / "outer" / "root"
        made = []
        for directory, parts in zip(_DIRECTORIES, targets, strict=True):
            (root / directory).mkdir(parents=True, exist_ok=True)
            if stays_inside("/".join(parts).encode(), len(Path(directory).parts)):
                made.append(root / directory / "link")
                made[-1].symlink_to("/".join(parts))
        for link in made:
            assert Path(os.path.realpath(link)).is_relative_to(root)
