"""What a guest of the lab keeps outside its disks: UEFI variables, and data inside its TPM.

The TPM is spoken to in its own language, as the guest has no tools for it: "TPM 2.0 Library,
Part 3: Commands", TPM2_NV_DefineSpace, TPM2_NV_Write, TPM2_NV_Read.
"""

from __future__ import annotations

import struct

from tests.guests import Guest

_VARIABLES = "/sys/firmware/efi/efivars"
_VENDOR = "8f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
_INDEX, _OWNER, _PASSWORD = 0x01500001, 0x40000001, 0x40000009
_DEFINE, _WRITE, _READ = 0x12A, 0x137, 0x14E
_ATTRIBUTES = 0x02040004  # NO_DA, AUTHREAD, AUTHWRITE
_SIZE = 16


def write(guest: Guest, text: str) -> None:
    """A variable of that name (Linux lets none be changed), and the TPM's only data."""
    data = text.encode().ljust(_SIZE, b".")
    attributes = struct.pack("<I", 7)  # non-volatile, for boot and run time
    guest.run(f"printf '{_escaped(attributes + data)}' >{_VARIABLES}/{text}-{_VENDOR}")
    if not _tpm(guest, _READ, _INDEX, _INDEX, struct.pack(">HH", _SIZE, 0)):
        public = struct.pack(">IHIHH", _INDEX, 0x000B, _ATTRIBUTES, 0, _SIZE)
        define = struct.pack(">HH", 0, len(public)) + public
        assert _tpm(guest, _DEFINE, _OWNER, None, define)
    assert _tpm(guest, _WRITE, _INDEX, _INDEX, struct.pack(">H", _SIZE) + data + bytes(2))


def read(guest: Guest) -> tuple[list[str], str]:
    """The names of the variables, sorted, and what the TPM holds."""
    paths = guest.run(f"ls {_VARIABLES}/*-{_VENDOR}").split()
    reply = _tpm(guest, _READ, _INDEX, _INDEX, struct.pack(">HH", _SIZE, 0))
    assert reply
    names = sorted(path.rpartition("/")[2].removesuffix(f"-{_VENDOR}") for path in paths)
    return names, reply[-_SIZE - 5 : -5].decode().rstrip(".")


def _tpm(guest: Guest, code: int, auth: int, handle: int | None, rest: bytes) -> bytes:
    """The reply; empty where the TPM refused."""
    handles = struct.pack(">I", auth) + (b"" if handle is None else struct.pack(">I", handle))
    empty_password = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)
    body = handles + empty_password + rest
    command = struct.pack(">HII", 0x8002, 10 + len(body), code) + body
    reply = bytes.fromhex(
        guest.run(f"exec 3<>/dev/tpm0; printf '{_escaped(command)}' >&3; od -An -v -tx1 <&3")
    )
    return reply if reply[6:10] == bytes(4) else b""


def _escaped(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)
