"""The state of emulated TPMs: read whole or not at all, put in place or as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from drvm.core.errors import HostError
from drvm.host.tpm import (
    MAX_FILE_BYTES,
    read_state,
    remove_state,
    restored_state,
    state_directory,
    sweep_states,
    write_state,
)

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
OLD = {"tpm2-00.permall": b"old"}
NEW = {"tpm2-00.permall": b"new", "tpm2-00.savestate": b"asleep"}


class Killed(BaseException):
    pass


def here(root: Path) -> dict[str, bytes]:
    return read_state(state_directory(root, UUID, "2.0"))


def test_a_machine_that_was_never_started_has_no_state(tmp_path: Path) -> None:
    assert here(tmp_path) == {}


def test_only_files_that_swtpm_writes_are_read(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, NEW)
    for name in (".lock", "TMP2-00.permall", "other", "tpm2-00.permall2"):
        (tmp_path / UUID / "tpm2" / name).write_bytes(b"x")
    assert here(tmp_path) == NEW


def test_the_kind_is_found_out_where_the_xml_does_not_say_it(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, {"tpm-00.permall": b"x"})
    assert state_directory(tmp_path, UUID, None).name == "tpm1.2"
    assert read_state(state_directory(tmp_path, UUID, None)) == {"tpm-00.permall": b"x"}
    assert read_state(state_directory(tmp_path, UUID, "2.0")) == {}


def test_what_is_no_plain_file_or_too_large_is_refused(tmp_path: Path) -> None:
    directory = state_directory(tmp_path, UUID, "2.0")
    directory.mkdir(parents=True)
    file, secret = directory / "tpm2-00.permall", tmp_path / "secret"
    secret.write_bytes(b"s")
    file.symlink_to(secret)
    with pytest.raises(HostError, match="can't be read"):
        read_state(directory)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(HostError, match="not a file"):
        read_state(directory)
    file.unlink()
    file.write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(HostError, match="more than"):
        read_state(directory)


@pytest.mark.parametrize("name", ["../x", "tpm2-00.permall/../../x", "", "a"])
def test_no_other_name_is_ever_written(tmp_path: Path, name: str) -> None:
    for files in ({name: b"x"}, {**NEW, name: b"x"}, {}):
        with pytest.raises(ValueError, match="no files"):
            write_state(tmp_path, UUID, files)
        with pytest.raises(ValueError, match="no files"), restored_state(tmp_path, UUID, files):
            pass
    with pytest.raises(ValueError, match="no UUID"):
        remove_state(tmp_path, "../x")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_restored_state_is_readable_by_nobody_else(tmp_path: Path) -> None:
    with restored_state(tmp_path, UUID, NEW):
        pass
    assert here(tmp_path) == NEW
    directory = tmp_path / UUID / "tpm2"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())]
    assert modes == [0o700, 0o600, 0o600]
    assert sorted(path.name for path in (tmp_path / UUID).iterdir()) == ["tpm2"]


def test_what_was_there_before_stays_beside_a_restored_state(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, OLD)
    with restored_state(tmp_path, UUID, NEW):
        pass
    (before,) = (tmp_path / UUID).glob("tpm2.before-*")
    assert (here(tmp_path), read_state(before)) == (NEW, OLD)


@pytest.mark.parametrize("old", [OLD, {}])
def test_a_failure_leaves_all_as_it_was(tmp_path: Path, old: dict[str, bytes]) -> None:
    if old:
        write_state(tmp_path, UUID, old)
    with pytest.raises(KeyError), restored_state(tmp_path, UUID, NEW):
        assert here(tmp_path) == NEW
        raise KeyError
    assert here(tmp_path) == old
    assert [p.name for p in tmp_path.rglob("*") if p.name not in (UUID, "tpm2", *OLD)] == []
    assert (tmp_path / UUID).exists() == bool(old)


def test_a_state_that_can_not_be_written_is_an_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, OLD)
    (tmp_path / UUID / ".new").write_text("in the way")
    with (
        pytest.raises(HostError, match="can't be put in place"),
        restored_state(tmp_path, UUID, NEW),
    ):
        raise AssertionError
    assert here(tmp_path) == OLD


def killed_in_restore(root: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """As SIGKILL would leave it after so many renames: nothing is undone."""
    done, rename = 0, Path.rename

    def renaming(path: Path, target: Path) -> Path:
        nonlocal done
        if path.parent == root / UUID:
            if done == renames:
                raise Killed
            done += 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        for name in ("unlink", "rmdir"):
            patch.setattr(Path, name, lambda *_, **__: None)
        patch.setattr("drvm.host.tpm._remove_tree", lambda _: None)
        with pytest.raises(Killed), restored_state(root, UUID, NEW):
            raise Killed


@pytest.mark.parametrize("renames", [0, 1])
def test_the_state_of_a_machine_that_was_never_defined_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    killed_in_restore(tmp_path, monkeypatch, renames)
    assert (tmp_path / UUID).exists()
    sweep_states(tmp_path, lambda _: False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("renames", "found"), [(0, OLD), (1, OLD), (2, NEW)])
def test_a_machine_that_is_there_has_one_whole_state_after_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, found: dict[str, bytes]
) -> None:
    write_state(tmp_path, UUID, OLD)
    killed_in_restore(tmp_path, monkeypatch, renames)
    for _ in range(2):
        sweep_states(tmp_path, lambda _: True)
        assert here(tmp_path) == found
        assert not (tmp_path / UUID / ".drvm-restoring").exists()


def test_a_sweep_leaves_living_restores_and_what_is_not_ours_alone(tmp_path: Path) -> None:
    other = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0002"
    write_state(tmp_path, other, OLD)
    with restored_state(tmp_path, UUID, NEW):
        sweep_states(tmp_path, lambda _: False)
        assert here(tmp_path) == NEW
        with pytest.raises(HostError, match="another restore"), restored_state(tmp_path, UUID, OLD):
            raise AssertionError
    sweep_states(tmp_path, lambda _: False)
    assert here(tmp_path) == NEW
    assert read_state(state_directory(tmp_path, other, "2.0")) == OLD


def test_a_removed_state_is_gone_with_whatever_swtpm_made(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, NEW)
    (tmp_path / UUID / "tpm2" / ".lock").touch()
    remove_state(tmp_path, UUID)
    remove_state(tmp_path, UUID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".new", "tpm2"])
def test_a_link_in_the_place_of_a_state_is_never_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "below" / "precious").write_text("x")
    root = tmp_path / "root"
    (root / UUID).mkdir(parents=True)
    (root / UUID / name).symlink_to(outside)
    with restored_state(root, UUID, NEW):
        pass
    remove_state(root, UUID)
    assert (outside / "below" / "precious").read_text() == "x"
    assert [path.name for path in outside.iterdir()] == ["below"]


def test_a_machine_s_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / UUID).symlink_to(outside)
    with pytest.raises(HostError, match="is a link"), restored_state(root, UUID, NEW):
        pass
    assert not list(outside.iterdir())


def test_a_state_that_libvirt_took_with_its_machine_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), restored_state(tmp_path, UUID, NEW):
        remove_state(tmp_path, UUID)
        raise KeyError
    assert not list(tmp_path.iterdir())
