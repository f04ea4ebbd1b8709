"""Files that others read while they are written."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.files import publish


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_a_new_file_gets_the_mode_of_the_umask_and_an_old_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    publish(page, b"one")
    assert (page.read_bytes(), mode(page)) == (b"one", 0o640)
    page.chmod(0o604)
    publish(page, b"two")
    assert (page.read_bytes(), mode(page)) == (b"two", 0o604)
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_an_old_file_keeps_its_owner(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    publish(page, b"one")
    os.chown(page, 1234, 2345)
    publish(page, b"two")
    assert (page.stat().st_uid, page.stat().st_gid) == (1234, 2345)


def test_who_reads_meanwhile_has_the_old_one_whole(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    publish(page, b"one")
    with page.open("rb") as reader:
        publish(page, b"two")
        assert reader.read() == b"one"


def test_a_full_disk_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    publish(page, b"one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        publish(page, b"two")
    assert caught.value.filename == str(page)
    assert page.read_bytes() == b"one" and list(tmp_path.iterdir()) == [page]


def test_what_a_killed_one_left_goes_with_a_later_one(tmp_path: Path) -> None:
    page = tmp_path / "page[1].html"
    old, young = (tmp_path / f".page[1].html.{name}.drvm-partial" for name in ("old", "young"))
    other = tmp_path / ".page1.html.x.drvm-partial"
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1, 1))
    publish(page, b"one")
    assert sorted(tmp_path.iterdir()) == sorted([page, young, other])


def test_a_link_stays_one(tmp_path: Path) -> None:
    page, link = tmp_path / "kept/page.html", tmp_path / "page.html"
    page.parent.mkdir()
    page.write_bytes(b"one")
    link.symlink_to(page)
    publish(link, b"two")
    assert link.is_symlink() and page.read_bytes() == b"two"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    publish(pipe, b"one")
    reader.join(10)
    assert read == [b"one"] and stat.S_ISFIFO(pipe.stat().st_mode)
