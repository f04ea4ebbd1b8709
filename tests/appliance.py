"""drvm as a user has it: a config, a passphrase, a repository, and its commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvm.cli.invocation import check_kinds, config_rules
from drvm.config.load import load_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.lab.services import S3Server
from drvm.wiring.assembly import Wiring
from tests.commands import LIMIT_S, Result, run_command


@dataclass(frozen=True)
class Appliance:
    """One installation of drvm in ``directory``; ``env`` is all that its commands know."""

    directory: Path
    env: Mapping[str, str]

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    def drvm(
        self, *arguments: str, expect: int | None = 0, env: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command to its end, in this process; any other exit code than ``expect`` is an
        error. ``None``: all will do, as for what looks at everything on the host."""
        result = run_command(self.words(*arguments), {**self.env, **(env or {})})
        assert "Traceback" not in result.err, result.err
        assert expect is None or result.code == expect, f"{arguments} -> {result}"
        return result

    def json(self, *arguments: str, expect: int | None = 0) -> Any:
        return self.drvm("--json", *arguments, expect=expect).document

    def words(self, *arguments: str) -> list[str]:
        return ["--config", str(self.config), *arguments]

    def argv(self, *arguments: str) -> list[str]:
        """Of a process of its own."""
        return [sys.executable, "-m", "drvm", *self.words(*arguments)]

    def backup(self, vm: str, *options: str) -> dict[str, Any]:
        """A point of ``vm``, warnings allowed."""
        done = self.drvm("--json", "backup", vm, *options, expect=None)
        assert done.code in (0, 3), done.err
        (point,) = done.document["points"]
        return dict(point)

    def wiring(self) -> Wiring:
        """The concrete objects for this config, in this process. Needs the environment of
        ``env`` where the store is S3: see ``monkeypatch`` in the fixtures."""
        settings = resolve(load_config(self.config, config_rules(), check_kinds), dict(self.env))
        passphrase = (self.directory / "passphrase").read_bytes().strip()
        return Wiring(
            settings,
            clock=SystemClock(),
            processes=SystemProcesses(),
            passphrase=lambda: passphrase,
        )

    def backup_killed_at(self, vm: str, step: str) -> None:
        """Take a point in a process that SIGKILL ends when ``step`` has become true."""
        self._killed_at(step, "tests.killed_backup", str(self.directory), vm, step)

    def killed_at(self, step: str, *arguments: str) -> None:
        """Run a command in a process that SIGKILL ends when ``step`` has become true."""
        self._killed_at(step, "tests.killed_command", step, *self.words(*arguments))

    def _killed_at(self, step: str, module: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=dict(self.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, f"{step} was never reached: {done.stderr}"


def make_appliance(directory: Path, url: str, server: S3Server | None, more: str = "") -> Appliance:
    """Written, not yet initialised."""
    directory.mkdir(parents=True, exist_ok=True)
    passphrase = directory / "passphrase"
    passphrase.write_text("a passphrase of the tests\n")
    passphrase.chmod(0o600)
    endpoint = f"  endpoint: {server.endpoint}\n" if server is not None else ""
    (directory / "config.yaml").write_text(
        f"repository:\n  url: {url}\n{endpoint}  password_file: {passphrase}\n"
        f"state_dir: {directory}/state\ncache_dir: {directory}/cache\n{more}"
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    if server is not None:
        env |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    return Appliance(directory, env)
