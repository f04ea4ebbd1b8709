"""The completion script of bash, run by bash."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.test_main import drvm, environ

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_drvm_completion drvm "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, and a program called drvm."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    directory = tmp_path_factory.mktemp("completion")
    (directory / "script").write_text(drvm("completion", "bash").stdout)
    program = directory / "drvm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m drvm "$@"\n')
    program.chmod(0o755)
    (directory / "config.yaml").write_text("policies: [{name: nightly, vms: [web1]}]\n")
    return directory


def completed(directory: Path, *words: str) -> list[str]:
    known = environ()
    done = subprocess.run(
        ["bash", "-c", ASK, "ask", str(directory / "script"), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={
            **known,
            "PATH": f"{directory}:{known['PATH']}",
            "DRVM_CONFIG": str(directory / "config.yaml"),
        },
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["drvm", "re"], ["restore", "report"]),
        (["drvm", "--config", "c.yaml", "po"], ["points"]),
        (["drvm", "restore", "web1", "--pool", "x", "--fo"], ["--format"]),
        (["drvm", "restore", "web1", "--format", ""], ["raw", "qcow2"]),
        (["drvm", "config", "v"], ["validate"]),
        (["drvm", "--js"], ["--json"]),
        (["drvm", "points", "--js"], ["--json"]),
        (["drvm", "config", "show", "--conf"], ["--config"]),
        (["drvm", "backup", "we"], []),
        (["drvm", "run", "b"], ["backup"]),
        (["drvm", "run", "backup", ""], ["nightly"]),
    ],
)
def test_verbs_options_and_their_values_are_completed(
    words: list[str], answer: list[str], directory: Path
) -> None:
    assert completed(directory, *words) == answer


def test_every_verb_is_offered(directory: Path) -> None:
    assert {"init", "backup", "restore", "drill", "demo"} <= set(completed(directory, "drvm", ""))
