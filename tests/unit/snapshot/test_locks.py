from __future__ import annotations

import os
from pathlib import Path

import pytest

from drvm.snapshot.locks import say_who, try_lock, who


def test_a_lock_has_one_holder_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "web.thaw"
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    os.close(held)
    again = try_lock(path)
    assert again is not None
    os.close(again)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "web.thaw").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        try_lock(tmp_path / "web.thaw")
    assert not (tmp_path / "elsewhere").exists()


def test_whoever_holds_a_lock_is_named_as_far_as_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert who(path) == ""
    held = try_lock(path)
    assert held is not None and who(path) == ""
    say_who(held)
    assert who(path) == " (this one, in another thread)"
    path.write_text("4194305\n")
    assert who(path) == " (pid 4194305)"
    os.close(held)
