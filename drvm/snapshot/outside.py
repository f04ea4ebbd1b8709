"""A machine's state outside its disks: UEFI variables, and what its emulated TPM keeps.

It belongs to the instant of the disks where it was the same right before and right after. The
freeze does not cover it: QEMU and swtpm write it by themselves, seldom, and mostly at boot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, HostError
from drvm.host import tpm
from drvm.host.places import StatePlaces
from drvm.snapshot.domainxml import Machine

MAX_NVRAM_BYTES = 32 * 1024 * 1024
"""No blob of a repository is larger."""

_NVRAM_SUFFIXES = ("_VARS.fd", "_VARS.qcow2")
_UNKNOWN = "where this libvirt keeps them is not known"
_LOOKS = 5
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Outside:
    """``nvram`` is ``None`` and ``tpm`` (file name -> content) empty where the machine has none,
    or was never started. They may hold secrets. ``warnings``: what can't be captured."""

    nvram: bytes | None = field(default=None, repr=False)
    tpm: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def look(machine: Machine, places: StatePlaces | None) -> Outside:
    """As it is now. Raises ``CaptureError`` where the UEFI variables can't be read."""
    warnings = list(machine.special)
    state: Mapping[str, bytes] = {}
    if machine.tpm is not None:
        try:
            state = _tpm_state(machine, places)
        except HostError as problem:
            warnings.append(f"the state of its TPM is not captured: {problem.message}")
    if machine.chosen_nvram and places is None:
        warnings.append(f"its UEFI variables are not captured: {_UNKNOWN}")
    return Outside(read_nvram(nvram_file(machine, places)), state, tuple(warnings))


def at_instant(
    before: Outside, machine: Machine, places: StatePlaces | None, clock: Clock
) -> Outside:
    """As it is right after the instant, ``before`` being how it was right before.

    QEMU writes UEFI variables in place: where they have changed, they are read until two looks in
    a row are alike, and the point says that they are a little younger than the disks.
    """
    now = look(machine, places)
    if now == before:
        return now
    for _ in range(_LOOKS):
        clock.sleep(_PAUSE_S)
        last, now = now, look(machine, places)
        if now == last:
            break
    words = "its UEFI variables or TPM were written to at the instant: they are a moment younger"
    return replace(now, warnings=(*now.warnings, words))


def _tpm_state(machine: Machine, places: StatePlaces | None) -> dict[str, bytes]:
    assert machine.tpm is not None
    directory = machine.tpm.directory
    if directory is None:
        if places is None:
            raise HostError(_UNKNOWN)
        directory = tpm.state_directory(places.tpm, machine.uuid, machine.tpm.version)
    return tpm.read_state(directory)


def nvram_file(machine: Machine, places: StatePlaces | None) -> Path | None:
    """Where its UEFI variables are; ``None`` where it has none, or has not been started yet."""
    if not machine.chosen_nvram or places is None:
        return machine.nvram
    found = [places.nvram / f"{machine.name}{suffix}" for suffix in _NVRAM_SUFFIXES]
    return next((path for path in found if path.exists()), None)


def read_nvram(path: Path | None) -> bytes | None:
    """Raises ``CaptureError``."""
    if path is None:
        return None
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise CaptureError(f"the NVRAM {path} is not a file")
            data = stream.read(MAX_NVRAM_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise CaptureError(f"the NVRAM {path} can't be read: {problem.strerror}") from None
    if len(data) > MAX_NVRAM_BYTES:
        raise CaptureError(f"the NVRAM {path} has more than {MAX_NVRAM_BYTES} bytes")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """For a pipe's other end."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
