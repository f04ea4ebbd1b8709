import os
from pathlib import Path

import pytest

from drvm.config.password import MAX_PASSWORD_BYTES, read_password, read_private_line, weakness
from drvm.config.settings import PasswordCommand, PasswordFile, PasswordVariable
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


def test_a_variable_may_hold_it() -> None:
    source = PasswordVariable("DRVM_PASSWORD")
    assert read_password(source, PROCESSES, {"DRVM_PASSWORD": "hunter2"}) == b"hunter2"
    with pytest.raises(UsageError, match="DRVM_PASSWORD gave an empty"):
        read_password(source, PROCESSES, {})


def test_a_file_that_a_group_can_read_is_warned_of(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "pass"
    path.write_bytes(b"hunter2")
    path.chmod(0o640)
    assert read_password(PasswordFile(path), PROCESSES, {}, told.append) == b"hunter2"
    (words,) = told
    assert "group" in words and "hunter2" not in words
    path.chmod(0o600)
    assert read_password(PasswordFile(path), PROCESSES, {}, told.append) == b"hunter2"
    assert len(told) == 1


def test_a_file_of_another_user_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    path = tmp_path / "pass"
    path.write_bytes(b"hunter2")
    path.chmod(0o600)
    real = os.fstat

    def foreign(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[4] = 4711
        return os.stat_result(fields)

    monkeypatch.setattr("drvm.config.password.os.fstat", foreign)
    read_password(PasswordFile(path), PROCESSES, {}, told.append)
    assert told == [f"the password file {path} belongs to another user (4711)"]


@pytest.mark.parametrize(
    ("password", "why"),
    [
        (b"short", "shorter"),
        (b"aaaaaaaaaaaaaaaa", "different"),
        (b"123456789012345", "digits"),
        (b"correct horse battery staple", ""),
    ],
)
def test_weak_passphrases_are_told(password: bytes, why: str) -> None:
    assert why in weakness(password) and bool(why) == bool(weakness(password))


def test_another_secret_is_one_line_of_a_file_that_no_group_may_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b" hunter2 \n")
    path.chmod(0o600)
    assert read_private_line(path, "the token") == b"hunter2"
    path.chmod(0o640)
    with pytest.raises(UsageError, match="can read the token") as caught:
        read_private_line(path, "the token")
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"\n \n", b"one\ntwo\n", b"x" * (MAX_PASSWORD_BYTES + 1)])
def test_another_secret_that_is_not_one_line_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="does not hold one line"):
        read_private_line(path, "the token")
