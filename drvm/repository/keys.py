"""Key slots: the master keys, wrapped under a key made from a passphrase.

A slot is created once, never changed. It is hostile input: the cost of the key derivation is
bounded both ways before any work is done, so that a slot can neither exhaust the memory nor
have been weakened.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from drvm.core.errors import DamageFound, WrongKey
from drvm.repository.crypto import KEY_BYTES, MasterKeys
from drvm.repository.layout import CONFIG, RepositoryConfig, decode_config

MEMORY_KIB = 64 * 1024
PASSES = 3
LANES = 4
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
    passphrase: bytes, slots: Iterable[tuple[str, bytes]], config: RepositoryConfig
) -> MasterKeys:
    """The master keys, from the first slot that the passphrase opens.

    Raises ``WrongKey`` where it opens none, and ``DamageFound`` where ``drvm.json`` is not what
    the slot was made for. A slot that can't be read is as good as none: another may serve.
    """
    damaged: list[str] = []
    seen = 0
    for name, data in slots:
        seen += 1
        try:
            slot, salt, wrapped = _parse(data)
        except (msgspec.MsgspecError, ValueError):
            damaged.append(name)
            continue
        key = _stretch(passphrase, salt, slot.memory_kib, slot.passes, slot.lanes)
        try:
            opened = AESGCM(key).decrypt(_NONCE, wrapped, _bind(slot.config.encode()))
        except InvalidTag:
            continue
        if decode_config(slot.config.encode()) != config:
            raise DamageFound(f"{CONFIG} was changed after the key slot {name} was made")
        return MasterKeys(opened[:KEY_BYTES], opened[KEY_BYTES:])
    if seen == 0:
        raise DamageFound("the repository has no key slots", hint="they lie under keys/")
    note = f"; damaged and left out: {', '.join(damaged)}" if damaged else ""
    raise WrongKey(
        f"the passphrase opens none of the {seen} key slots{note}",
        hint="check repository.password_file in the config, or DRVM_PASSWORD_FILE",
    )


def _parse(data: bytes) -> tuple[KeySlot, bytes, bytes]:
    slot = msgspec.json.decode(data, type=KeySlot)
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
