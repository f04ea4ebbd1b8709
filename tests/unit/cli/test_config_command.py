from pathlib import Path

import pytest
import yaml

from tests.commands import Result, run_command
from tests.unit.cli.test_main import ROOT, environ


def drvm(*arguments: str, **more: str) -> Result:
    return run_command(arguments, environ(**more))


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_example_is_valid() -> None:
    done = drvm("--config", str(ROOT / "config.example.yaml"), "config", "validate")
    assert done.code == 0 and "is valid (1 policy)" in done.out


def test_generate_prints_the_example() -> None:
    done = drvm("config", "generate")
    assert done.out == (ROOT / "config.example.yaml").read_text()


def test_every_mistake_is_listed_and_the_exit_is_2(write) -> None:  # type: ignore[no-untyped-def]
    path = write("polices: []\nstate_dir: relative\ndaemon: {max_parallel: 0}\n")
    done = drvm("--config", path, "config", "validate", "--json")
    assert done.code == 2
    problems = done.document["error"]["problems"]
    assert [problem.split(":")[0] for problem in problems] == ["line 1", "line 2", "line 3"]
    assert all(problem in done.err for problem in problems)


def test_a_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    done = drvm("config", "validate", DRVM_CONFIG=str(tmp_path / "absent.yaml"))
    assert done.code == 2 and "no such file" in done.err


def test_show_fills_in_the_defaults_and_loads_again(write) -> None:  # type: ignore[no-untyped-def]
    path = write("repository: {url: 'file:///srv/drvm'}\n")
    shown = drvm("--config", path, "config", "show")
    fields = yaml.safe_load(shown.out)
    assert fields["hosts"] == [{"uri": "qemu:///system"}]
    assert drvm("--config", write(shown.out), "config", "validate").code == 0


def test_show_hides_credentials_in_the_urls_of_a_command(write) -> None:  # type: ignore[no-untyped-def]
    command = "['curl', 'https://me:hunter2@vault/x']"
    path = write(f"repository: {{url: 's3://bucket', password_command: {command}}}\n")
    for flags in ([], ["--json"]):
        done = drvm("--config", path, "config", "show", *flags)
        assert "hunter2" not in done.out and "https://***@vault/x" in done.out


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
    assert done.code == 2 and "line 1" in done.err
    assert "hunter2" not in done.out + done.err


def test_a_password_in_the_uri_of_a_host_reaches_no_message() -> None:
    done = drvm("vms", LIBVIRT_DEFAULT_URI="qemu+tcp://root:hunter2@127.0.0.1:9/system")
    assert done.code == 2
    assert "must not hold a password" in done.err and "hunter2" not in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(shell: str) -> None:
    done = drvm("completion", shell)
    assert done.code == 0 and "_DRVM_COMPLETE" in done.out


def test_completion_knows_the_verbs() -> None:
    done = drvm(_DRVM_COMPLETE="fish_complete", COMP_WORDS="drvm conf", COMP_CWORD="conf")
    assert done.out.split("\n")[0].startswith("plain,config")
