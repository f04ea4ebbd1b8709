"""The S3 server of tests and demo: closed to strangers, mute about its secret, gone at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.process import SystemProcesses
from drvm.lab import services

pytestmark = pytest.mark.s3


def is_open(endpoint: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(endpoint).port or 0)) == 0


def command_lines() -> str:
    return "\n".join(
        path.read_text(errors="replace").replace("\0", " ")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    )


def test_the_server_refuses_who_does_not_sign(seaweedfs: services.S3Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{seaweedfs.endpoint}/{seaweedfs.bucket}", timeout=30)
    refused.value.close()
    assert refused.value.code == 403


def test_the_secret_is_in_no_command_line_no_repr_and_no_log(tmp_path: Path) -> None:
    with services.seaweedfs(tmp_path, SystemProcesses(), SystemClock()) as server:
        assert str(tmp_path) in command_lines()
        assert server.secret_key not in command_lines()
        assert server.secret_key not in repr(server)
    assert server.secret_key not in (tmp_path / "weed.log").read_text(errors="replace")


def test_the_server_ends_with_its_context(tmp_path: Path) -> None:
    with services.seaweedfs(tmp_path, SystemProcesses(), SystemClock()) as server:
        assert is_open(server.endpoint)
    assert not is_open(server.endpoint)


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from drvm.core.clock import SystemClock\n"
        "from drvm.core.process import SystemProcesses\n"
        "from drvm.lab import services\n"
        "with services.seaweedfs(Path(sys.argv[1]), SystemProcesses(), SystemClock()) as server:\n"
        "    print(server.endpoint, flush=True)\n"
        "    time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert is_open(endpoint)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_open(endpoint) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_open(endpoint)


def test_a_server_that_ends_at_once_is_an_error_and_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_weed", lambda: "false")
    with (
        pytest.raises(DrvmError, match="ended while it started"),
        services.seaweedfs(tmp_path, SystemProcesses(), SystemClock()),
    ):
        pass
