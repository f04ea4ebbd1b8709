"""Names that drvm makes, and the check of names that come from outside."""

from __future__ import annotations

import re
import secrets
import uuid

_POINT_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_VM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}", re.ASCII)
_TPM_FILE = re.compile(r"tpm2?-00\.(permall|savestate|volatilestate)", re.ASCII)
_TARGET = re.compile(r"[a-z][a-z0-9]{0,15}", re.ASCII)


def new_point_id() -> str:
    """64 random bits as 16 hex digits: what people see and type a prefix of."""
    return secrets.token_hex(8)


def new_generation() -> str:
    """64 random bits; generations are never counted, so two writers can't agree on one."""
    return secrets.token_hex(8)


def is_point_id(text: str) -> bool:
    return _POINT_ID.fullmatch(text) is not None


def is_vm_name(text: str) -> bool:
    """Whether a VM may be *made* under this name: it becomes part of file names."""
    return _VM_NAME.fullmatch(text) is not None and ".." not in text


def is_disk_target(text: str) -> bool:
    """A device name as libvirt writes it (``vda``); it becomes part of file names."""
    return _TARGET.fullmatch(text) is not None


def is_tpm_file(text: str) -> bool:
    """The name of a file that swtpm keeps a TPM's state in (``tpm-`` for TPM 1.2)."""
    return _TPM_FILE.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """A UUID in the canonical lower-case form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
