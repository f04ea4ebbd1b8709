"""``drvm doctor --fix`` where one of the hosts does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drvm.core.clock import SystemClock
from drvm.drill.place import Note, drill_name, made
from drvm.restore.targets.volume_lease import new_token
from tests.commands import run_command
from tests.unit.repository.conftest import cheap_key_derivation

__all__ = ["cheap_key_derivation"]

AWAY = "qemu+tcp://127.0.0.1:1/system"
GONE = "qemu+tcp://127.0.0.1:2/system"
OTHER = "qemu+tcp://127.0.0.1:3/system"
CONFIG = """
repository: {{url: "file://{0}/store", password_file: {0}/passphrase}}
hosts: [{{uri: "{1}"}}, {{uri: "test:///default"}}]
state_dir: {0}/state
cache_dir: {0}/cache
"""


def set_up(tmp_path: Path) -> dict[str, str]:
    """The environment of a repository's commands."""
    (tmp_path / "passphrase").write_text("a passphrase for tests only")
    (tmp_path / "passphrase").chmod(0o600)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(tmp_path, AWAY))
    env = {"DRVM_CONFIG": str(config), "PATH": "/usr/bin:/bin"}
    assert run_command(["init"], env).code == 0
    return env


def test_a_host_that_is_away_keeps_no_other_from_being_repaired(tmp_path: Path) -> None:
    env = set_up(tmp_path)
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


def test_dead_drills_on_a_host_that_is_gone_are_let_go_only_where_somebody_says_so(
    tmp_path: Path,
) -> None:
    env = set_up(tmp_path)
    drills = tmp_path / "state" / "drills"
    names = [drill_name(digit * 16) for digit in "abc"]
    token = new_token()
    notes = (Note(GONE, "spare", token), Note(OTHER), Note(GONE))
    living = made(drills / names[2], notes[2], SystemClock())
    for name, note in zip(names[:2], notes, strict=False):
        with made(drills / name, note, SystemClock()):
            pass
    with living:
        (told,) = (f for f in doctor(env) if f["name"] == f"drills on {GONE}")
        assert all(word in told["detail"] for word in (f"machine {names[0]}", "spare", token))
        assert names[2] not in told["detail"]
        assert f"--forget-drills {GONE}" in told["hint"]
        asked = run_command(["doctor", "--forget-drills", GONE], env)
        assert (asked.code, "--yes" in asked.err) == (2, True)
        assert len([*drills.iterdir()]) == 3
        done = {f["name"]: f for f in doctor(env, "--forget-drills", GONE, "--yes")}
        forgotten = done[f"forget {drills / names[0]}"]
        assert forgotten["ok"] and f"volumes of pool spare with {token}" in forgotten["detail"]
    assert sorted(path.name for path in drills.iterdir()) == names[1:]


def test_drills_on_this_machine_are_never_forgotten(tmp_path: Path) -> None:
    env = set_up(tmp_path)
    place = tmp_path / "state" / "drills" / drill_name("a" * 16)
    with made(place, Note("test:///default"), SystemClock()):
        pass
    refused = run_command(["doctor", "--forget-drills", "test:///default", "--yes"], env)
    assert refused.code == 2 and "drvm doctor --fix" in refused.err
    unknown = run_command(["doctor", "--forget-drills", GONE, "--yes"], env)
    assert unknown.code == 2 and "no dead drill" in unknown.err
    assert place.exists()


def doctor(env: dict[str, str], *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_command(["--json", "doctor", *options], env).document[
        "findings"
    ]
    return found
