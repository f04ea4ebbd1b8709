"""The passphrase, from where the settings say. It is never logged, shown or put into errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from drvm.config.settings import PasswordCommand, PasswordFile, PasswordVariable
from drvm.core.errors import ProcessFailed, UsageError
from drvm.core.private import read_private
from drvm.core.process import Processes
from drvm.core.redact import keep_secret

MAX_PASSWORD_BYTES = 4096
COMMAND_TIMEOUT_S = 60.0
_LEAST_BYTES = 12
_LEAST_DIFFERENT = 6

_PASSED_ON = ("HOME", "USER", "LOGNAME", "GNUPGHOME", "GPG_TTY", "SSH_AUTH_SOCK", "VAULT_ADDR",
              "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DBUS_SESSION_BUS_ADDRESS",
              "PASSWORD_STORE_DIR")  # fmt: skip
"""What password managers need to find their store; nothing of drvm's or of AWS's."""


def read_password(
    source: PasswordFile | PasswordCommand | PasswordVariable,
    processes: Processes,
    environ: Mapping[str, str],
    warn: Callable[[str], None] = lambda _: None,
) -> bytes:
    """Without its line end, never empty. ``warn`` is told who else may read a file. Raises
    ``UsageError`` or ``ProcessFailed``."""
    if isinstance(source, PasswordFile):
        what = f"the password file {source.path}"
        hint = "set password_file in the config, DRVM_PASSWORD_FILE or DRVM_PASSWORD_COMMAND"
        data = read_private(source.path, what, MAX_PASSWORD_BYTES + 3, warn, hint=hint)
        return check_password(data, what)
    if isinstance(source, PasswordVariable):
        return check_password(os.fsencode(environ.get(source.name, "")), source.name)
    try:
        output = processes.run(
            source.argv,
            timeout_s=COMMAND_TIMEOUT_S,
            env={name: environ[name] for name in _PASSED_ON if name in environ},
            max_output_bytes=MAX_PASSWORD_BYTES + 2,
        )
    except ProcessFailed:
        # not its own words: what it wrote may hold what it was asked for
        raise ProcessFailed(
            f"the password command {source.argv[0]} did not end well",
            hint="run it in a shell to see why; it must print the passphrase and end with 0 "
            f"within {COMMAND_TIMEOUT_S:.0f} s",
        ) from None
    return check_password(output.stdout, f"the password command {source.argv[0]}")


def check_password(data: bytes, source: str) -> bytes:
    """Take one line end off, refuse what can't be meant. ``source`` is for messages."""
    if data.endswith(b"\n"):
        data = data[:-1].removesuffix(b"\r")
    if not data:
        raise UsageError(f"{source} gave an empty passphrase", hint="a passphrase is one line")
    if len(data) > MAX_PASSWORD_BYTES:
        raise UsageError(
            f"{source} gave more than {MAX_PASSWORD_BYTES} bytes", hint="a passphrase is one line"
        )
    keep_secret(data)
    return data


def weakness(password: bytes) -> str:
    """Why a new passphrase is weak, empty where nothing is seen. Whoever can read the bucket can
    try passphrases, some ten a second on each processor that they have."""
    if len(password) < _LEAST_BYTES:
        return f"it is shorter than {_LEAST_BYTES} characters"
    if len(set(password)) < _LEAST_DIFFERENT:
        return f"it has fewer than {_LEAST_DIFFERENT} different characters"
    if password.isdigit() and len(password) < 2 * _LEAST_BYTES:
        return "it is made of digits only"
    return ""


def read_private_line(path: Path, what: str) -> bytes:
    """Another secret than a passphrase, from a file that only its owner can read or write: its one
    line. ``what`` is for messages. Raises ``UsageError``."""
    hint = f"write it as root; chmod 600 {path}"
    data = read_private(path, what, MAX_PASSWORD_BYTES + 3, hint=hint, closed_to=0o077)
    line = data.strip()
    if not line or len(data) > MAX_PASSWORD_BYTES or len(line.splitlines()) > 1:
        raise UsageError(f"{what} does not hold one line", hint=f"write one line to {path}")
    keep_secret(line)
    return line
