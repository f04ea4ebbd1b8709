"""What a drill found, as it is kept in the repository."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from drvm.core.errors import DamageFound, UnsupportedFormat

FORMAT = 1
"""1 added what stands behind ``format`` below; both are read, and 1 is written."""
MAX_ENCODED_BYTES = 16 * 1024 * 1024
MAX_DETAIL_CHARS = 4000
MAX_ABSENT = 100

SCAN = "scan"
PHASES = ("plan", "data", "define", "boot", "checks", "waits", SCAN)
"""The phases of a drill in their order; later kinds of drill may have others. ``waits``: of a
machine of a group, for those that come up before it. ``scan``: of the disks alone, when the machine
is up already. All others are the parts of the RTO, and add up to it."""

Seconds = Annotated[float, Meta(ge=0)]
Short = Annotated[str, Meta(max_length=300)]
Long = Annotated[str, Meta(max_length=2 * MAX_DETAIL_CHARS)]
Moment = Annotated[dt.datetime, Meta(tz=True)]


class CheckResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``detail``: what the guest answered or what went wrong, for people."""

    name: Short
    passed: bool
    seconds: Seconds
    detail: Long = ""


class DrillResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One drill of one VM. Moments are aware.

    ``rto_seconds``: from the first byte asked for to all checks passed, ``None`` if they never
    did. ``rpo_seconds``: how old the point was when the drill began. ``failure``: why the drill
    failed where no check did (a restore that broke off, a guest that never booted).
    ``not_proven``: what this drill says nothing about, in words for an auditor.
    ``group_absent``: members of its group that could not be drilled with it, and why.
    """

    id: Short
    vm: Short
    vm_uuid: Short
    point: Short
    point_created: Moment
    consistency: Short
    started: Moment
    finished: Moment
    passed: bool
    rto_seconds: Seconds | None
    rto_target_seconds: Seconds | None
    rpo_seconds: Seconds
    rpo_target_seconds: Seconds | None
    phases: Annotated[dict[Short, Seconds], Meta(max_length=20)]
    checks: Annotated[tuple[CheckResult, ...], Meta(max_length=500)]
    not_proven: Annotated[tuple[Long, ...], Meta(max_length=50)]
    host: Short
    drvm_version: Short
    data_bytes: Annotated[int, Meta(ge=0)]
    proven: Annotated[tuple[Long, ...], Meta(max_length=50)] = ()
    warnings: Annotated[tuple[Long, ...], Meta(max_length=100)] = ()
    failure: Long = ""
    screenshot_png: Annotated[bytes, Meta(max_length=8 * 1024 * 1024)] | None = None
    format: int = FORMAT
    method: Literal["restore", "boot"] = "restore"
    group: Short = ""
    stage: Annotated[int, Meta(ge=0, le=10_000)] = 0
    group_rto_seconds: Seconds | None = None
    ran: bool = True
    group_absent: Annotated[tuple[Long, ...], Meta(max_length=MAX_ABSENT)] = ()

    @property
    def why_failed(self) -> str:
        """Of one that did not pass."""
        names = ", ".join(check.name for check in self.checks if not check.passed)
        return self.failure or (f"{names} did not pass" if names else "it did not recover")

    @property
    def rto_met(self) -> bool | None:
        """``None`` where there is no target."""
        if self.rto_target_seconds is None:
            return None
        return self.rto_seconds is not None and self.rto_seconds <= self.rto_target_seconds

    @property
    def group_rto_met(self) -> bool | None:
        """The same of its group, by this machine's target; ``None`` where it is in none."""
        if not self.group or self.rto_target_seconds is None:
            return None
        taken = self.group_rto_seconds
        return taken is not None and taken <= self.rto_target_seconds

    @property
    def rpo_met(self) -> bool | None:
        if self.rpo_target_seconds is None:
            return None
        return self.rpo_seconds <= self.rpo_target_seconds


_encoder = msgspec.json.Encoder(decimal_format="number")
_decoder = msgspec.json.Decoder(DrillResult)


class _Envelope(msgspec.Struct):
    format: int


def encode_drill(drill: DrillResult) -> bytes:
    """The form that is stored: JSON with every field. Raises ``ValueError`` for what could not
    be read back."""
    data = _encoder.encode(drill)
    try:
        readable = decode_drill(data)
    except DamageFound as error:
        raise ValueError(str(error)) from None
    if readable != drill:
        raise ValueError("the drill's result does not survive being written")
    return data


def decode_drill(data: bytes) -> DrillResult:
    """Raises ``UnsupportedFormat`` for a later format, ``DamageFound`` for all else."""
    if len(data) > MAX_ENCODED_BYTES:
        raise DamageFound("a drill result is larger than any drill writes")
    try:
        if msgspec.json.decode(data, type=_Envelope).format > FORMAT:
            raise UnsupportedFormat("a drill result was written by a newer drvm")
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamageFound(f"a drill result can't be read: {str(error)[:300]}") from None
