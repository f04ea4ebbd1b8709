import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.test_main import ROOT, drvm, environ


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_example_is_valid() -> None:
    done = drvm("--config", str(ROOT / "config.example.yaml"), "config", "validate")
    assert done.returncode == 0 and "is valid (1 policy)" in done.stdout


def test_generate_prints_the_example() -> None:
    done = drvm("config", "generate")
    assert done.stdout == (ROOT / "config.example.yaml").read_text()


def test_every_mistake_is_listed_and_the_exit_is_2(write) -> None:  # type: ignore[no-untyped-def]
    path = write("polices: []\nstate_dir: relative\ndaemon: {max_parallel: 0}\n")
    done = drvm("--config", path, "config", "validate", "--json")
    assert done.returncode == 2
    problems = json.loads(done.stdout)["error"]["problems"]
    assert [problem.split(":")[0] for problem in problems] == ["line 1", "line 2", "line 3"]
    assert all(problem in done.stderr for problem in problems)


def test_a_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    done = drvm("config", "validate", DRVM_CONFIG=str(tmp_path / "absent.yaml"))
    assert done.returncode == 2 and "no such file" in done.stderr


def test_show_fills_in_the_defaults_and_loads_again(write) -> None:  # type: ignore[no-untyped-def]
    path = write("repository: {url: 'file:///srv/drvm'}\n")
    shown = drvm("--config", path, "config", "show")
    fields = yaml.safe_load(shown.stdout)
    assert fields["hosts"] == [{"uri": "qemu:///system"}]
    assert drvm("--config", write(shown.stdout), "config", "validate").returncode == 0


def test_show_hides_credentials_in_urls(write) -> None:  # type: ignore[no-untyped-def]
    path = write("hosts: [{uri: 'esx://root:hunter2@host/'}]\n")
    for flags in ([], ["--json"]):
        done = drvm("--config", path, "config", "show", *flags)
        assert "hunter2" not in done.stdout and "esx://***@host/" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(shell: str) -> None:
    done = drvm("completion", shell)
    assert done.returncode == 0 and "_DRVM_COMPLETE" in done.stdout


def test_completion_knows_the_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drvm"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=environ(_DRVM_COMPLETE="fish_complete", COMP_WORDS="drvm conf", COMP_CWORD="conf"),
    )
    assert "config" in done.stdout
