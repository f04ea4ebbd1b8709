"""``drvm doctor --fix`` where one of the hosts does not answer."""

from __future__ import annotations

from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.drill.place import Note, drill_name, made
from tests.commands import run_command
from tests.unit.repository.conftest import cheap_key_derivation

__all__ = ["cheap_key_derivation"]

AWAY = "qemu+tcp://127.0.0.1:1/system"
GONE = "qemu+tcp://127.0.0.1:2/system"
CONFIG = """
repository: {{url: "file://{0}/store", password_file: {0}/passphrase}}
hosts: [{{uri: "{1}"}}, {{uri: "test:///default"}}]
state_dir: {0}/state
cache_dir: {0}/cache
"""


def test_a_host_that_is_away_keeps_no_other_from_being_repaired(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("a passphrase for tests only")
    (tmp_path / "passphrase").chmod(0o600)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(tmp_path, AWAY))
    env = {"DRVM_CONFIG": str(config), "PATH": "/usr/bin:/bin"}
    assert run_command(["init"], env).code == 0
    drills = tmp_path / "state" / "drills"
    dead = [drills / drill_name(digit * 16) for digit in "ab"]
    for directory, uri in zip(dead, ("test:///default", GONE), strict=True):
        with made(directory, Note(uri), SystemClock()):
            pass
    repaired = {
        finding["name"]: finding["ok"]
        for finding in run_command(["--json", "doctor", "--fix"], env).document["findings"]
        if finding["name"].startswith("repair ")
    }
    assert [
        repaired[f"repair {name}"] for name in (f"host {AWAY}", dead[0], f"drills on {GONE}")
    ] == [
        False,
        True,
        False,
    ]
    assert [directory.exists() for directory in dead] == [False, True]
