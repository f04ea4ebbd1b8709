from pathlib import Path

import pytest

from drvm.config.password import MAX_PASSWORD_BYTES, read_password
from drvm.config.settings import PasswordCommand, PasswordFile
from drvm.core.errors import ProcessFailed, UsageError
from drvm.core.process import SystemProcesses

PROCESSES = SystemProcesses()


def from_file(path: Path, data: bytes, mode: int = 0o600) -> bytes:
    path.write_bytes(data)
    path.chmod(mode)
    return read_password(PasswordFile(path), PROCESSES, {})


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a", b"a"), (b"a\n", b"a"), (b"a\r\n", b"a"), (b"a\n\n", b"a\n"), (b" a b ", b" a b ")],
)
def test_one_line_end_is_taken_off_and_nothing_else(
    tmp_path: Path, data: bytes, expected: bytes
) -> None:
    assert from_file(tmp_path / "pass", data) == expected


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", b"x" * (MAX_PASSWORD_BYTES + 1)])
def test_what_is_no_passphrase_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UsageError):
        from_file(tmp_path / "pass", data)


def test_a_file_that_every_user_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        from_file(tmp_path / "pass", b"hunter2", 0o644)
    assert "chmod 600" in caught.value.hint and "hunter2" not in str(caught.value)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_password(PasswordFile(tmp_path / "absent"), PROCESSES, {})


def test_a_command_prints_it() -> None:
    source = PasswordCommand(("/bin/sh", "-c", "echo hunter2"))
    assert read_password(source, PROCESSES, {}) == b"hunter2"


def test_a_command_sees_its_home_but_no_secret_of_ours() -> None:
    source = PasswordCommand(("/bin/sh", "-c", "echo $HOME/$AWS_SECRET_ACCESS_KEY"))
    environ = {"HOME": "/root", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    assert read_password(source, PROCESSES, environ) == b"/root/"


def test_a_command_that_fails_is_an_error_without_what_it_printed() -> None:
    source = PasswordCommand(("/bin/sh", "-c", "echo hunter2; exit 1"))
    with pytest.raises(ProcessFailed) as caught:
        read_password(source, PROCESSES, {})
    assert "hunter2" not in str(caught.value)
