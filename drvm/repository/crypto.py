"""Sealing: AES-256-GCM under a key of its own for every object.

A key is HKDF-SHA256(master, salt, info = purpose and repository id) with 32 fresh random bytes
of salt that stand in the object, so a counter serves as nonce and no (key, nonce) pair can ever
come twice. The associated data binds what a ciphertext is and where it belongs, so that no
valid piece can stand in for another. docs/FORMAT.md, "Sealing".
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from drvm.chunker import frames
from drvm.chunker.blocks import Buffer
from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository.layout import FORMAT_VERSION

SALT_BYTES = 32
TAG_BYTES = 16
KEY_BYTES = 32
MARK_BYTES = 16
MAX_OBJECT_BYTES = 64 * 1024 * 1024

_MAGIC = b"drvmseal"
_ENVELOPE = struct.Struct("<8sH")
_NONCE = struct.Struct(">IQ")


@dataclass(frozen=True, slots=True, repr=False)
class MasterKeys:
    """Two independent random keys, 32 bytes each. Never printed, logged or passed to a child."""

    seal: bytes
    block_id: bytes

    @staticmethod
    def generate() -> MasterKeys:
        return MasterKeys(secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES))


def derive(master: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(master)


class Sealer:
    """Seals and opens whatever belongs to one repository. Safe for any number of threads."""

    def __init__(self, keys: MasterKeys, repository_id: str, host_key: bytes | None = None) -> None:
        """``host_key``: known to this host only; without any, one that ends with the process."""
        self._keys = keys
        self._repository_id = bytes.fromhex(repository_id)
        self._host_key = host_key or secrets.token_bytes(KEY_BYTES)

    def block_id_key(self) -> bytes:
        return self._keys.block_id

    def leaf_digest_key(self) -> bytes:
        return derive(self._keys.block_id, b"", b"drvm leaf digest" + self._repository_id)

    def id_table_key(self) -> bytes:
        """For what the local cache says of packs; nothing stored depends on it."""
        return derive(self._keys.block_id, b"", b"drvm id table" + self._repository_id)

    def trust_key(self) -> bytes:
        """For what the local cache says of who wrote what; nothing stored depends on it."""
        return derive(self._host_key, b"", b"drvm trust" + self._repository_id)

    def mark(self, purpose: bytes, data: bytes) -> bytes:
        """16 bytes by which this host, and nobody else, knows that it wrote ``data``. To others
        they are random."""
        key = derive(self._host_key, b"", b"drvm mark " + purpose + self._repository_id)
        return blake3(data, key=key).digest(length=MARK_BYTES)

    def cipher(self, purpose: bytes, salt: bytes) -> ObjectCipher:
        """The cipher of one object. ``purpose`` is its type; ``salt`` its own 32 bytes."""
        key = derive(self._keys.seal, salt, b"drvm " + purpose + b" " + self._repository_id)
        header = struct.pack("<H", FORMAT_VERSION) + purpose + self._repository_id + salt
        return ObjectCipher(AESGCM(key), header)

    def seal_object(self, purpose: bytes, name: str, plain: bytes) -> bytes:
        """A small object as a whole: compressed, sealed, bound to its name. Raises
        ``RepositoryError`` for more than a reader takes."""
        if len(plain) > MAX_OBJECT_BYTES:
            raise RepositoryError(f"{name} has {len(plain)} bytes, at most {MAX_OBJECT_BYTES} fit")
        salt = secrets.token_bytes(SALT_BYTES)
        packed = struct.pack("<I", len(plain)) + zstandard.compress(plain, 9)
        body = self.cipher(purpose, salt).seal(0, 0, packed, name.encode())
        return _ENVELOPE.pack(_MAGIC, FORMAT_VERSION) + salt + body

    def open_object(self, purpose: bytes, name: str, data: bytes) -> bytes:
        """The inverse. Raises ``DamageFound`` for anything that was not sealed under this name."""
        head = _ENVELOPE.size + SALT_BYTES
        if len(data) < head + TAG_BYTES:
            raise DamageFound(f"{name} is truncated")
        magic, version = _ENVELOPE.unpack_from(data)
        if magic != _MAGIC:
            raise DamageFound(f"{name} is not an object of drvm")
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(f"{name} has format version {version}")
        cipher = self.cipher(purpose, data[_ENVELOPE.size : head])
        packed = cipher.open(0, 0, data[head:], name.encode(), name)
        length = int.from_bytes(packed[:4], "little")
        if length > MAX_OBJECT_BYTES:
            raise DamageFound(f"{name} claims {length} bytes")
        try:
            plain = frames.decompress(packed[4:], length)
        except ValueError as error:
            raise DamageFound(f"{name} is damaged: {error}") from None
        if len(packed) < 4 or len(plain) != length:
            raise DamageFound(f"{name} is damaged: it holds other than {length} bytes")
        return plain


class ObjectCipher:
    """AES-256-GCM with the key of one object; each (domain, number) is used for one piece."""

    def __init__(self, aead: AESGCM, header: bytes) -> None:
        self._aead = aead
        self._header = header

    def seal(self, domain: int, number: int, plain: bytes, bind: bytes = b"") -> bytes:
        """Ciphertext and tag: ``len(plain) + 16`` bytes."""
        nonce = _NONCE.pack(domain, number)
        return self._aead.encrypt(nonce, plain, self._header + nonce + bind)

    def seal_into(self, domain: int, number: int, plain: bytes, sealed: memoryview) -> None:
        """The same without ``bind``, into ``len(plain) + 16`` bytes that are there."""
        nonce = _NONCE.pack(domain, number)
        self._aead.encrypt_into(nonce, plain, self._header + nonce, sealed)

    def open(
        self, domain: int, number: int, sealed: Buffer, bind: bytes = b"", what: str = "an object"
    ) -> bytes:
        """Raises ``DamageFound``, naming ``what``, unless it was sealed exactly so."""
        nonce = _NONCE.pack(domain, number)
        try:
            return self._aead.decrypt(nonce, sealed, self._header + nonce + bind)
        except InvalidTag:
            raise DamageFound(
                f"{what} is damaged or was put in the place of another",
                hint="points that don't need it can still be restored: drvm points lists them",
            ) from None
