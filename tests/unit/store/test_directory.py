from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import StoreRefused
from drvm.store.directory import DirectoryStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore.create(root)


def names(store: DirectoryStore) -> list[str]:
    return [info.name for info in store.list("")]


def test_what_a_killed_writer_leaves_is_never_listed(store: DirectoryStore, root: Path) -> None:
    store.put("packs/a", b"x")
    (root / "packs" / "~0123456789abcdef").write_bytes(b"half of a pack")
    assert names(store) == ["packs/a"]


def test_no_temporary_file_stays_behind(store: DirectoryStore, root: Path) -> None:
    store.put("packs/a", b"x")
    store.put_if_absent("packs/b", b"y")
    with pytest.raises(Exception, match="exists already"):
        store.put_if_absent("packs/b", b"z")
    assert sorted(path.name for path in root.rglob("*")) == ["a", "b", "packs"]


def test_files_that_can_not_be_ours_are_left_out(store: DirectoryStore, root: Path) -> None:
    store.put("a", b"x")
    (root / "lost+found").mkdir()
    (root / "lost+found" / "inner").write_bytes(b"")
    (root / "note to self").write_bytes(b"")
    assert names(store) == ["a"]


def test_a_link_in_place_of_an_object_is_refused(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (root / "packs").mkdir()
    (root / "packs" / "a").symlink_to(secret)
    for call in (store.get, store.head):
        with pytest.raises(StoreRefused, match="symbolic link"):
            call("packs/a")
    with pytest.raises(StoreRefused, match="symbolic link"):
        names(store)


def test_a_write_replaces_a_link_and_leaves_its_target(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"as it was")
    (root / "a").symlink_to(target)
    store.put("a", b"new")
    assert target.read_bytes() == b"as it was"
    assert store.get("a") == b"new"


def test_a_linked_directory_is_refused_for_reading_writing_and_listing(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_bytes(b"x")
    (root / "packs").symlink_to(elsewhere)
    for call in (
        lambda: store.get("packs/a"),
        lambda: store.put("packs/b", b"y"),
        lambda: store.delete("packs/a"),
        lambda: list(store.list("packs/")),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreRefused, match="symbolic link"):
            call()
    assert [path.name for path in elsewhere.iterdir()] == ["a"]


def test_a_pipe_in_place_of_an_object_does_not_block(store: DirectoryStore, root: Path) -> None:
    os.mkfifo(root / "a")
    with pytest.raises(StoreRefused, match="special file"):
        store.get("a")


def test_a_root_that_vanished_is_refused_and_not_taken_for_empty(
    store: DirectoryStore, root: Path
) -> None:
    store.put("a", b"x")
    root.rename(root.with_name("unmounted"))
    for call in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.put("packs/b", b"y"),
        lambda: store.put_if_absent("b", b"y"),
        lambda: store.delete("packs/a"),
        lambda: list(store.list("")),
        lambda: list(store.list("packs/")),
        lambda: DirectoryStore(root),
    ):
        with pytest.raises(StoreRefused, match="there is no directory"):
            call()
    assert not root.exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreRefused):
        DirectoryStore(tmp_path / "file")
    with pytest.raises(StoreRefused):
        DirectoryStore.create(tmp_path / "file")


def test_a_relative_root_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="absolute"):
        DirectoryStore(Path("repository"))


def test_missing_permission_is_refused_with_a_hint(store: DirectoryStore, root: Path) -> None:
    root.chmod(0o500)
    if os.getuid() == 0:  # root may do everything, so be nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(StoreRefused, match="no permission") as failure:
            store.put("packs/a", b"x")
        assert "owner" in failure.value.hint
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        root.chmod(0o700)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "drvm-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_file_system_is_refused_and_keeps_what_it_had(small: Path) -> None:
    store = DirectoryStore(small)
    store.put("packs/a", b"x" * 400_000)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(StoreRefused, match="full"):
            write("packs/b", b"y" * 900_000)
    assert names(store) == ["packs/a"]
    assert [path.name for path in (small / "packs").iterdir()] == ["a"]
    store.put_if_absent("packs/b", b"y" * 400_000)


def test_the_location_is_the_url_that_opens_it(store: DirectoryStore, root: Path) -> None:
    assert store.location == root.as_uri()
