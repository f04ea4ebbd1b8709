"""Key slots: the master keys, wrapped under a key made from a passphrase.

A slot is created once, never changed. It is hostile input: the cost of the key derivation is
bounded both ways before any work is done, so that a slot can neither exhaust the memory nor
have been weakened. What a slot says of itself (who made it, when, what for) is sealed under the
master keys: whoever holds them can tell a slot that another holder made from one that somebody
put there. docs/FORMAT.md, "Key slots".
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from drvm.core.errors import DamageFound, RepositoryError, WrongKey
from drvm.repository.crypto import KEY_BYTES, MasterKeys, Sealer
from drvm.repository.layout import CONFIG, RepositoryConfig, decode_config, decode_json

MEMORY_KIB = 64 * 1024
PASSES = 3
LANES = 4
MAX_SLOT_BYTES = 16 * 1024
MAX_LABEL_CHARS = 100
_MEMORY_BOUNDS = range(MEMORY_KIB, 1024 * 1024 + 1)
_PASSES_BOUNDS = range(PASSES, 17)
_LANES_BOUNDS = range(1, 17)
_NO_SLOTS = "they lie under keys/; drvm key import makes a new one from the paper form"
_NONCE = bytes(12)  # the wrapping key serves once: its salt is fresh


class KeySlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``config`` is a copy of ``drvm.json`` that the wrapping authenticates; ``about`` a sealed
    ``About``."""

    kdf: str
    memory_kib: int
    passes: int
    lanes: int
    salt: str
    wrapped: str
    config: str
    about: str

    def digest(self) -> str:
        """Of all but ``about``."""
        cost = (str(self.memory_kib), str(self.passes), str(self.lanes))
        text = "\n".join((self.kdf, *cost, self.salt, self.wrapped, self.config))
        return hashlib.sha256(text.encode()).hexdigest()


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a slot says of itself; ``created``: RFC 3339 in UTC; ``host``: who made it."""

    label: Annotated[str, msgspec.Meta(max_length=MAX_LABEL_CHARS)] = ""
    created: str = ""
    host: str = ""
    slot_sha256: str = ""


UNNAMED = About()


@dataclass(frozen=True, slots=True, repr=False)
class Opened:
    """``config``: the slot's own copy, which is authenticated; ``slot`` and ``data``: the name
    and the bytes of the slot that the passphrase opened."""

    keys: MasterKeys
    config: RepositoryConfig
    slot: str
    data: bytes


def make_slot(
    name: str, passphrase: bytes, keys: MasterKeys, config: RepositoryConfig, about: About
) -> bytes:
    """A new slot as it is stored. Uses 64 MiB of memory for about a tenth of a second."""
    salt = secrets.token_bytes(32)
    text = config.encode()
    aead = AESGCM(_stretch(passphrase, salt, MEMORY_KIB, PASSES, LANES))
    wrapped = aead.encrypt(_NONCE, keys.seal + keys.block_id, _bind(text))
    cost = (MEMORY_KIB, PASSES, LANES)
    slot = KeySlot("argon2id", *cost, salt.hex(), wrapped.hex(), text.decode(), "")
    own = msgspec.structs.replace(about, slot_sha256=slot.digest())
    sealer = Sealer(keys, config.repository_id)
    sealed = sealer.seal_object(b"slot", name, msgspec.json.encode(own))
    slot = msgspec.structs.replace(slot, about=sealed.hex())
    return msgspec.json.format(msgspec.json.encode(slot), indent=2) + b"\n"


def read_about(sealer: Sealer, name: str, data: bytes) -> About | None:
    """What a slot says of itself; ``None`` where no holder of the master keys made it, or not
    so. Raises ``DamageFound`` for what is no slot at all."""
    try:
        slot, _, _ = _parse(name, data)
        sealed = bytes.fromhex(slot.about)
    except ValueError as error:
        raise DamageFound(f"{name} is damaged: {error}") from None
    try:
        about = decode_json(sealer.open_object(b"slot", name, sealed), About, name)
    except RepositoryError:
        return None
    return about if about.slot_sha256 == slot.digest() else None


def open_slots(
    passphrase: bytes, slots: Sequence[tuple[str, bytes]], config: RepositoryConfig | None
) -> Opened:
    """The master keys, from the first slot that the passphrase opens and that was made for
    ``config``; where ``config`` is ``None`` a slot made for any will do.

    Raises ``WrongKey`` where the passphrase opens none, and ``DamageFound`` where ``drvm.json``
    is not what they were made for. A slot that can't be read is as good as none: another may
    serve. The cheapest are tried first, of these those that were given first: so slots that
    somebody added delay only whoever has the wrong passphrase.
    """
    if not slots:
        raise DamageFound("the repository has no key slots", hint=_NO_SLOTS)
    damaged: list[str] = []
    readable: list[tuple[str, bytes, KeySlot, bytes, bytes]] = []
    for name, data in slots:
        try:
            readable.append((name, data, *_parse(name, data)))
        except (DamageFound, ValueError):
            damaged.append(name)
    foreign = ""
    for name, data, slot, salt, wrapped in sorted(readable, key=lambda parsed: _cost(parsed[2])):
        text = slot.config.encode()
        try:
            key = _stretch(passphrase, salt, slot.memory_kib, slot.passes, slot.lanes)
            opened = AESGCM(key).decrypt(_NONCE, wrapped, _bind(text))
        except (InvalidTag, MemoryError):
            continue
        own = decode_config(text)
        if config is None or own == config:
            return Opened(MasterKeys(opened[:KEY_BYTES], opened[KEY_BYTES:]), own, name, data)
        foreign = name
    if foreign:
        raise DamageFound(f"{CONFIG} was changed after the key slot {foreign} was made")
    note = f"; damaged and left out: {', '.join(damaged[:8])}" if damaged else ""
    raise WrongKey(
        f"the passphrase opens none of the {len(slots)} key slots{note}",
        hint="check repository.password_file in the config, or DRVM_PASSWORD_FILE; "
        "drvm key import makes a new slot from the paper form",
    )


def is_slot(name: str, data: bytes) -> bool:
    """Whether some passphrase may open it. Damage inside of what is wrapped shows only to whoever
    has its passphrase."""
    try:
        _parse(name, data)
    except (DamageFound, ValueError):
        return False
    return True


def _cost(slot: KeySlot) -> int:
    return slot.memory_kib * slot.passes


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


_ONE_AT_A_TIME = threading.Lock()


def _stretch(passphrase: bytes, salt: bytes, memory_kib: int, passes: int, lanes: int) -> bytes:
    """One at a time: two at once, in threads of one process, wait for each other for ever, as
    OpenSSL has one pool of threads for all."""
    with _ONE_AT_A_TIME:
        return Argon2id(
            salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib
        ).derive(passphrase)


def _bind(config_text: bytes) -> bytes:
    return b"drvm key slot\0" + config_text
