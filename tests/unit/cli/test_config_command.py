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


def test_show_hides_credentials_in_the_urls_of_a_command(write) -> None:  # type: ignore[no-untyped-def]
    command = "['curl', 'https://me:hunter2@vault/x']"
    path = write(f"repository: {{url: 's3://bucket', password_command: {command}}}\n")
    for flags in ([], ["--json"]):
        done = drvm("--config", path, "config", "show", *flags)
        assert "hunter2" not in done.stdout and "https://***@vault/x" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "hosts: [{uri: 'qemu+tcp://root:hunter2@host/system'}]\n",
        "repository: {url: 's3://key:hunter2@bucket/prefix'}\n",
        "repository: {url: 's3://bucket', endpoint: 'https://key:hunter2@host/'}\n",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(write, text: str) -> None:  # type: ignore[no-untyped-def]
    done = drvm("--config", write(text), "config", "show", "--json")
    assert done.returncode == 2 and "line 1" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_password_in_the_uri_of_a_host_reaches_no_message() -> None:
    done = drvm("vms", LIBVIRT_DEFAULT_URI="qemu+tcp://root:hunter2@127.0.0.1:9/system")
    assert done.returncode == 2
    assert "must not hold a password" in done.stderr and "hunter2" not in done.stderr


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
