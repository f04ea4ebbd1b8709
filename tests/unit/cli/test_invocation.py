import io
from pathlib import Path

import pytest

from drvm.cli.invocation import Invocation
from drvm.cli.output import Flags, Output
from drvm.core.clock import SystemClock
from drvm.core.errors import ConfigError, UsageError
from drvm.core.process import SystemProcesses


def invocation(config: Path | None = None, **environ: str) -> Invocation:
    flags = Flags()
    return Invocation(
        output=Output(io.StringIO(), flags, colour=False),
        stderr=io.StringIO(),
        flags=flags,
        clock=SystemClock(),
        processes=SystemProcesses(),
        environ=environ,
        colour=False,
        named_config=config,
    )


def test_settings_come_from_config_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("repository: {url: 'file:///a'}\nstate_dir: /s\n")
    settings = invocation(path, DRVM_REPOSITORY="file:///b").settings()
    assert settings.needed_repository().url == "file:///b"
    assert settings.state_dir == Path("/s")


def test_schedules_are_checked_by_crons_rules(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("policies: [{name: a, vms: [b], schedule: '61 * * * *'}]\n")
    with pytest.raises(ConfigError) as caught:
        invocation(path).settings()
    assert "minute" in caught.value.problems[0]


def test_the_passphrase_comes_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pass"
    path.write_bytes(b"hunter2\n")
    path.chmod(0o600)
    asked = invocation(tmp_path / "none", DRVM_PASSWORD_FILE=str(path))
    with pytest.raises(ConfigError):
        asked.settings()
    (tmp_path / "empty.yaml").write_text("")
    named = invocation(
        tmp_path / "empty.yaml", DRVM_PASSWORD_FILE=str(path), DRVM_REPOSITORY="file:///r"
    )
    assert named.password(named.settings()) == b"hunter2"


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")
    nobody = invocation(path)
    with pytest.raises(UsageError) as caught:
        nobody.password(nobody.settings())
    assert "DRVM_PASSWORD_FILE" in caught.value.hint
    with pytest.raises(UsageError, match="yes"):
        nobody.confirm("delete?", yes=False)
    nobody.confirm("delete?", yes=True)
