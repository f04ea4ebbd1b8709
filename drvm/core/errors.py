"""The one tree of errors.

::

    DrvmError                     exit  1
    ├── UsageError                      2   the request itself is wrong
    │   ├── ConfigError                 2   the config file is wrong (all mistakes at once)
    │   ├── UnknownVm                   2
    │   └── UnknownPoint                2
    ├── StoreError                      1
    │   ├── ObjectMissing               1   the store answered: there is no such object
    │   ├── ObjectDamaged               4   the store answered: with what can't be an object of ours
    │   │   └── ObjectTruncated         4   the object is shorter than what was asked for
    │   ├── ObjectExists                1   create-if-absent lost: somebody else created it
    │   ├── StoreRefused                1   the store answered: no (permission, credentials, bucket)
    │   ├── StoreUnreachable            1   no answer, or a passing fault (retryable)
    │   └── OutcomeUnknown              1   a write was sent and its answer was lost
    ├── RepositoryError                 1
    │   ├── NoRepository               10
    │   ├── Locked                     11   somebody else works on this VM
    │   ├── WrongKey                   12
    │   ├── UnsupportedFormat           1   written by a newer drvm
    │   ├── DamageFound                 4   stored bytes are not what was written
    │   │   └── TamperingFound          4   somebody overwrote or deleted what drvm keeps
    │   └── PacksCondemned              1   packs of this attempt are being collected: try anew
    ├── HostError                       1   libvirt or QEMU said no
    │   ├── HostUnreachable             1   (retryable)
    │   └── AgentError                  1   the guest's agent is absent, silent or refuses
    ├── ProcessFailed                   1   a tool ended badly, or ran out of time
    ├── CaptureError                    1   no consistent image of the guest could be had
    │   ├── OutOfSpace                  1   what the guest writes meanwhile has no room (retryable)
    │   └── CleanupFailed               1   the image was had, the guest is not yet back on its base
    ├── RestoreError                    1
    │   └── PreflightFailed             1   every problem of the plan, before the first byte
    ├── DrillFailed                     4
    ├── NotifyFailed                    1   somebody could not be told of an alarm (retryable)
    └── Interrupted                   130
"""

from __future__ import annotations

from collections.abc import Sequence


class DrvmError(Exception):
    """Something drvm can explain.

    ``message`` is lower case without a full stop; ``hint`` says what to do next;
    ``retryable`` says whether the same call may succeed later without any change.
    Neither ever contains a secret.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    @property
    def with_hint(self) -> str:
        """One line, for logs."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class UsageError(DrvmError):
    """The request itself is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """The config file is wrong; ``problems`` lists every mistake, each with its line."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class UnknownVm(UsageError):
    """No such virtual machine on the host."""


class UnknownPoint(UsageError):
    """No such recovery point in the repository."""


class StoreError(DrvmError):
    """The object store could not do what was asked: always as one of those below, which say what
    is known. Only what is unreachable is worth another try."""


class ObjectMissing(StoreError):
    """The store answered that the object does not exist."""


class ObjectDamaged(StoreError):
    """The store gave a whole answer that can't be right; asking again would give the same."""

    exit_code = 4


class ObjectTruncated(ObjectDamaged):
    """The object is shorter than the range that was asked for."""


class ObjectExists(StoreError):
    """Create-if-absent lost: the object exists already."""


class StoreRefused(StoreError):
    """The store answered no: permission, credentials, missing bucket, full."""


class StoreUnreachable(StoreError):
    """No answer, or a fault that passes."""

    retryable = True


class OutcomeUnknown(StoreUnreachable):
    """A write was sent and its answer was lost: it may or may not have happened."""


class RepositoryError(DrvmError):
    """The repository as a whole."""


class NoRepository(RepositoryError):
    exit_code = 10


class Locked(RepositoryError):
    exit_code = 11


class WrongKey(RepositoryError):
    exit_code = 12


class UnsupportedFormat(RepositoryError):
    """The repository was written by a newer drvm."""


class DamageFound(RepositoryError):
    """Stored bytes are not what was written."""

    exit_code = 4


class TamperingFound(DamageFound):
    """In a store that keeps versions, somebody overwrote or deleted objects of the repository. The
    first versions are there still, and are what is read."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(
            message,
            hint=hint
            or "somebody uses the store's keys: change them; points still restore, and nothing is "
            'removed until that is cleared up: docs/S3.md, "After a break-in"',
        )


class PacksCondemned(RepositoryError):
    """Packs that this attempt relies on are absent or being collected.

    ``packs`` holds their names (32 bytes each). The attempt has been aborted in the repository;
    a new one must not refer to them.
    """

    def __init__(self, message: str, *, packs: frozenset[bytes]) -> None:
        super().__init__(message)
        self.packs = packs


class HostError(DrvmError):
    """libvirt or QEMU said no."""


class HostUnreachable(HostError):
    retryable = True


class AgentError(HostError):
    """The guest's agent is absent, silent or refuses."""


class ProcessFailed(DrvmError):
    """A tool ended with an error, or was ended because its time was up. ``code``: its exit code,
    where it came to its end, and then what it wrote."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: int | None = None,
        stdout: bytes = b"",
        stderr: bytes = b"",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


class CaptureError(DrvmError):
    """No consistent image of the guest could be had; the guest is as it was before."""


class CleanupFailed(CaptureError):
    """The image was had, but the guest is not yet back on its base image.

    The journal is kept: the next start, or ``drvm doctor --fix``, finishes the work.
    """


class OutOfSpace(CaptureError):
    """What the guest writes during a capture has no room: not begun, or given up in time."""

    retryable = True


class RestoreError(DrvmError):
    """A restore could not be done; nothing that it made is left behind."""


class PreflightFailed(RestoreError):
    """The plan can't work; ``problems`` lists everything that stands in its way, with hints."""

    def __init__(self, message: str, *, problems: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class DrillFailed(DrvmError):
    exit_code = 4


class NotifyFailed(DrvmError):
    """A message, or a ping, did not arrive. ``refused``: it was answered, with a no that will
    hardly become a yes by itself."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", refused: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.refused = refused


class Interrupted(DrvmError):
    exit_code = 130
