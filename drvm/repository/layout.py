"""The names of the repository's objects and the constants of its format.

Names are never derived from what is stored. docs/FORMAT.md, "Objects".
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound, UnsupportedFormat
from drvm.core.text import printable

FORMAT_VERSION = 0
CONFIG = "drvm.json"
KEYS = "keys/"
PACKS = "packs/"
POINTS = "points/"
FINALS = "final/"
CONDEMNED = "condemned/"
DRILLS = "drills/"
INDEX = "index/"
PINS = "pins/"
LEAVING = "leaving/"
CHECKS = "checks/"
PROBES = "probe/"
LEASES = "leases/"
LOOSE = (PROBES, LEASES)
"""Objects that may come and go; every other is created once under its name."""
LOCKED = (CONFIG, KEYS, PACKS, POINTS, FINALS)
"""What Object Lock keeps: all that a restore needs."""
WRITTEN_ONCE = (*LOCKED, PINS, INDEX, CONDEMNED, LEAVING, CHECKS, DRILLS)
"""All that is created once under its name: a later version is somebody else's."""

PACK_MAX_BYTES = 32 * 1024 * 1024
PACK_MAX_BLOCKS = 65536
FANOUT = 32
_SHOWN_CHARS = 200

_Document = TypeVar("_Document", bound=msgspec.Struct)

_PACK = re.compile(r"packs/([0-9a-f]{64})", re.ASCII)
_INDEX = re.compile(r"index/([0-9a-f]{64})", re.ASCII)
_POINT = re.compile(r"points/([0-9a-f-]{36})/([0-9a-f]{16})\.([0-9a-f]{16})", re.ASCII)
_SLOT = re.compile(r"keys/([0-9a-f]{16})", re.ASCII)
_PIN = re.compile(r"pins/([0-9a-f]{16})\.[0-9a-f]{16}", re.ASCII)
_CHECK = re.compile(r"checks/[0-9a-f]{16}", re.ASCII)


class RepositoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``drvm.json``: plain text, so that a reader can tell what it needs before it has a key.

    ``features``: names that a reader must know for every operation; unknown ones are refused.
    """

    format_version: int
    repository_id: str
    features: tuple[str, ...]
    block_bytes: int = BLOCK_BYTES
    frame_blocks: int = FRAME_BLOCKS
    leaf_blocks: int = LEAF_BLOCKS
    fanout: int = FANOUT

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def decode_config(data: bytes) -> RepositoryConfig:
    """Raises ``UnsupportedFormat`` for whatever a newer drvm wrote, ``DamageFound`` for noise."""
    version = decode_json(data, _AnyVersion, CONFIG).format_version
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(
            f"the repository has format version {_short(str(version))}; "
            f"this drvm knows {FORMAT_VERSION}",
            hint="use the version of drvm that wrote it, or a newer one",
        )
    config = decode_json(data, RepositoryConfig, CONFIG)
    if config.features:
        raise UnsupportedFormat(
            f"the repository needs the features {_short(', '.join(config.features))}"
        )
    own = RepositoryConfig(config.format_version, config.repository_id, ())
    if config != own:
        raise UnsupportedFormat("the repository has other constants than this version of drvm")
    if re.fullmatch(r"[0-9a-f]{32}", config.repository_id) is None:
        raise DamageFound(
            f"{CONFIG} is damaged: {_short(config.repository_id)!r} is not a repository id"
        )
    return config


def decode_json(data: bytes, kind: type[_Document], what: str) -> _Document:
    """Raises ``DamageFound``, naming ``what``, for all that is not such a document: wrong fields,
    wrong text, and nesting that would exhaust the stack."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamageFound(f"{what} is damaged: {_short(str(error))}") from None


def _short(text: str) -> str:
    """What somebody else wrote, for a message."""
    return printable(text, _SHOWN_CHARS)


class _AnyVersion(msgspec.Struct):
    format_version: int


def slot_object(slot_id: str) -> str:
    return KEYS + slot_id


def parse_slot(object_name: str) -> str | None:
    """A key slot's id; ``None`` for what is not the name of one."""
    match = _SLOT.fullmatch(object_name)
    return match[1] if match else None


def pack_object(name: bytes) -> str:
    return PACKS + name.hex()


def pack_name(object_name: str) -> bytes | None:
    """The 32 bytes of a pack's name; ``None`` for what is not the name of a pack."""
    match = _PACK.fullmatch(object_name)
    return bytes.fromhex(match[1]) if match else None


def tombstone(name: bytes) -> str:
    """The object that condemns a pack."""
    return CONDEMNED + name.hex()


def index_object(name: bytes) -> str:
    return INDEX + name.hex()


def index_name(object_name: str) -> bytes | None:
    """The 32 bytes of an index object's name; ``None`` for what is not one."""
    match = _INDEX.fullmatch(object_name)
    return bytes.fromhex(match[1]) if match else None


def point_object(vm_uuid: str, point_id: str, generation: str) -> str:
    return f"{POINTS}{vm_uuid}/{point_id}.{generation}"


def parse_point(object_name: str) -> tuple[str, str, str] | None:
    """(VM's UUID, id, generation); ``None`` for what is not the name of a point."""
    match = _POINT.fullmatch(object_name)
    return (match[1], match[2], match[3]) if match else None


def final_object(point_id: str, generation: str) -> str:
    return f"{FINALS}{point_id}.{generation}"


def pin_object(point_id: str, nonce: str) -> str:
    return f"{PINS}{point_id}.{nonce}"


def parse_pin(object_name: str) -> str | None:
    """The id of the point that is pinned; ``None`` for what is not the name of a pin."""
    match = _PIN.fullmatch(object_name)
    return match[1] if match else None


def check_object(nonce: str) -> str:
    return CHECKS + nonce


def is_check(object_name: str) -> bool:
    return _CHECK.fullmatch(object_name) is not None


def lease_object(vm_uuid: str, nonce: str) -> str:
    return f"{LEASES}{vm_uuid}/{nonce}"


def drill_object(vm_uuid: str, drill_id: str) -> str:
    return f"{DRILLS}{vm_uuid}/{drill_id}"


def parse_drill(object_name: str) -> tuple[str, str] | None:
    """(VM's UUID, id); ``None`` for what is not the name of a drill's record. Each is a segment of
    an object's name, and so of a path."""
    parts = object_name.removeprefix(DRILLS).split("/")
    return (parts[0], parts[1]) if len(parts) == 2 else None
