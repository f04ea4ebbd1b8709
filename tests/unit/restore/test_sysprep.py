"""What a clone is given anew inside its disks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import ProcessFailed, RestoreError, UsageError
from drvm.core.process import Output, Processes
from drvm.repository.manifest import Disk
from drvm.restore import sysprep
from drvm.restore.sysprep import DEFAULT, chosen_operations, run_sysprep, sysprep_problems
from drvm.restore.targets.images import PlannedImage

IMAGES = [(Path("/pool/a b.qcow2"), "qcow2"), (Path("/pool/b.raw"), "raw")]


class Recorded:
    def __init__(self, failure: str = "") -> None:
        self.argv: list[str] = []
        self.options: dict[str, Any] = {}
        self._failure = failure

    def run(self, argv: Sequence[str], **options: Any) -> Output:
        self.argv, self.options = list(argv), options
        if self._failure:
            raise ProcessFailed(self._failure)
        return Output(b"", b"")


def run(recorded: Recorded, *, emulated: bool = False) -> None:
    processes: Processes = recorded  # type: ignore[assignment]
    run_sysprep(processes, DEFAULT, IMAGES, emulated=emulated)


def test_each_image_is_given_with_its_format_and_nothing_of_ours_is_told() -> None:
    recorded = Recorded()
    run(recorded, emulated=True)
    at = recorded.argv.index("--format")
    assert recorded.argv[at:] == [
        *("--format", "qcow2", "--add", "/pool/a b.qcow2"),
        *("--format", "raw", "--add", "/pool/b.raw"),
    ]
    assert recorded.options["env"]["LIBGUESTFS_BACKEND"] == "direct"
    assert recorded.options["env"]["LIBGUESTFS_BACKEND_SETTINGS"] == "force_tcg"
    assert "DRVM_PASSWORD" not in recorded.options["env"]
    assert recorded.options["timeout_s"] and recorded.options["max_output_bytes"]


def test_it_ends_with_us_also_where_we_are_killed() -> None:
    recorded = Recorded()
    run(recorded)
    assert recorded.argv[:4] == ["setpriv", "--pdeathsig", "SIGTERM", sysprep.PROGRAM]


def test_by_default_neither_accounts_nor_keys_nor_data_of_people_go() -> None:
    kept = {"user-account", "ssh-userdir", "bash-history", "mail-spool", "logfiles", "script"}
    assert not kept & set(DEFAULT)
    assert {"machine-id", "ssh-hostkeys", "dhcp-client-state"} <= set(DEFAULT)


def test_operations_are_names_and_never_options() -> None:
    assert chosen_operations("default") == DEFAULT
    assert chosen_operations("machine-id,ssh-hostkeys") == ("machine-id", "ssh-hostkeys")
    for text in ("", "--script", "a,,b", "a;b", "machine-id,/etc"):
        with pytest.raises(UsageError, match="no operation"):
            chosen_operations(text)


def test_a_failure_is_told_with_the_way_on() -> None:
    with pytest.raises(RestoreError, match="no operating system") as caught:
        run(Recorded("virt-sysprep: no operating system\x1b"))
    assert caught.value.message.isprintable()
    assert "without --sysprep" in caught.value.hint


def test_what_it_can_not_reach_or_has_not_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk("vda", 1 << 20, "raw", "full", 0, 0, 0)
    far = PlannedImage(disk, Path("/pool/x"), "raw", None, "default", "dir")
    near = PlannedImage(disk, Path("/pool/x"), "raw")
    monkeypatch.setattr(sysprep.shutil, "which", lambda name: f"/usr/bin/{name}")
    (line,) = sysprep_problems(DEFAULT, [far, near])
    assert "disk vda" in line
    assert list(sysprep_problems((), [far])) == []
    monkeypatch.setattr(sysprep.shutil, "which", lambda name: None)
    (line,) = sysprep_problems(DEFAULT, [near])
    assert "apt install guestfs-tools" in line
