"""Key slots: the master keys, wrapped under a key made from a passphrase.

A slot is created once, never changed. It is hostile input: the cost of the key derivation is
bounded both ways before any work is done, so that a slot can neither exhaust the memory nor
have been weakened.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from drvm.core.errors import DamageFound, WrongKey
from drvm.repository.crypto import KEY_BYTES, MasterKeys
from drvm.repository.layout import CONFIG, RepositoryConfig, decode_config, decode_json

MEMORY_KIB = 64 * 1024
PASSES = 3
LANES = 4
MAX_SLOT_BYTES = 16 * 1024
_MEMORY_BOUNDS = range(MEMORY_KIB, 1024 * 1024 + 1)
_PASSES_BOUNDS = range(PASSES, 17)
_LANES_BOUNDS = range(1, 17)
_NONCE = bytes(12)  # the wrapping key serves once: its salt is fresh


class KeySlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``config`` is a copy of ``drvm.json`` that the wrapping authenticates."""

    kdf: str
    memory_kib: int
    passes: int
    lanes: int
    salt: str
    wrapped: str
    config: str


def make_slot(passphrase: bytes, keys: MasterKeys, config: RepositoryConfig) -> bytes:
    """A new slot as it is stored. Uses 64 MiB of memory for about a tenth of a second."""
    salt = secrets.token_bytes(32)
    text = config.encode()
    aead = AESGCM(_stretch(passphrase, salt, MEMORY_KIB, PASSES, LANES))
    wrapped = aead.encrypt(_NONCE, keys.seal + keys.block_id, _bind(text))
    slot = KeySlot("argon2id", MEMORY_KIB, PASSES, LANES, salt.hex(), wrapped.hex(), text.decode())
    return msgspec.json.format(msgspec.json.encode(slot), indent=2) + b"\n"


def open_slots(
    passphrase: bytes, slots: Sequence[tuple[str, bytes]], config: RepositoryConfig | None
) -> tuple[MasterKeys, RepositoryConfig]:
    """The master keys, from the first slot that the passphrase opens and that was made for
    ``config``, and the slot's own copy of it; where ``config`` is ``None`` any copy will do.

    Raises ``WrongKey`` where the passphrase opens none, and ``DamageFound`` where ``drvm.json``
    is not what they were made for. A slot that can't be read is as good as none: another may
    serve. The cheapest are tried first, so costly ones that somebody added delay only whoever
    has the wrong passphrase.
    """
    if not slots:
        raise DamageFound("the repository has no key slots", hint="they lie under keys/")
    damaged: list[str] = []
    readable: list[tuple[str, KeySlot, bytes, bytes]] = []
    for name, data in slots:
        try:
            readable.append((name, *_parse(name, data)))
        except (DamageFound, ValueError):
            damaged.append(name)
    foreign = ""
    for name, slot, salt, wrapped in sorted(readable, key=_cost):
        key = _stretch(passphrase, salt, slot.memory_kib, slot.passes, slot.lanes)
        text = slot.config.encode()
        try:
            opened = AESGCM(key).decrypt(_NONCE, wrapped, _bind(text))
        except InvalidTag:
            continue
        own = decode_config(text)
        if config is None or own == config:
            return MasterKeys(opened[:KEY_BYTES], opened[KEY_BYTES:]), own
        foreign = name
    if foreign:
        raise DamageFound(f"{CONFIG} was changed after the key slot {foreign} was made")
    note = f"; damaged and left out: {', '.join(damaged[:8])}" if damaged else ""
    raise WrongKey(
        f"the passphrase opens none of the {len(slots)} key slots{note}",
        hint="check repository.password_file in the config, or DRVM_PASSWORD_FILE",
    )


def is_slot(name: str, data: bytes) -> bool:
    """Whether some passphrase may open it. Damage inside of what is wrapped shows only to whoever
    has its passphrase."""
    try:
        _parse(name, data)
    except (DamageFound, ValueError):
        return False
    return True


def _cost(parsed: tuple[str, KeySlot, bytes, bytes]) -> int:
    return parsed[1].memory_kib * parsed[1].passes


def _parse(name: str, data: bytes) -> tuple[KeySlot, bytes, bytes]:
    slot = decode_json(data, KeySlot, name)
    sane = (
        slot.kdf == "argon2id"
        and slot.memory_kib in _MEMORY_BOUNDS
        and slot.passes in _PASSES_BOUNDS
        and slot.lanes in _LANES_BOUNDS
    )
    if not sane:
        raise ValueError("key derivation out of bounds")
    salt, wrapped = bytes.fromhex(slot.salt), bytes.fromhex(slot.wrapped)
    if len(salt) != 32 or len(wrapped) != 2 * KEY_BYTES + 16:
        raise ValueError("wrong lengths")
    return slot, salt, wrapped


def _stretch(passphrase: bytes, salt: bytes, memory_kib: int, passes: int, lanes: int) -> bytes:
    return Argon2id(
        salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib
    ).derive(passphrase)


def _bind(config_text: bytes) -> bytes:
    return b"drvm key slot\0" + config_text
