"""The manifest of an OVF package: what its files were when it was made (DSP0243)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drvm.core.errors import UsageError
from drvm.core.progress import Progress
from drvm.core.units import MIB
from drvm.host.images import Part

_LINE = re.compile(
    r"(SHA1|SHA256|SHA512) ?\(([^()\n\r]{1,250})\) ?= ?([0-9a-fA-F]{40,128})\s*", re.ASCII
)
_CHUNK_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class Digest:
    algorithm: str
    hex: str


def written(sums: Mapping[str, str]) -> bytes:
    """The text of a manifest: by file name SHA-256 in hex, the description's first."""
    return b"".join(f"SHA256({name})= {digest}\n".encode() for name, digest in sums.items())


def sha256(path: Path, progress: Progress) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
            progress.advance(len(chunk))
    return hasher.hexdigest()


def read(text: str) -> dict[str, Digest]:
    """By file name; lines that are no digests are passed over."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return {line[2]: Digest(line[1].lower(), line[3].lower()) for line in found if line}


def compare(name: str, stream: BinaryIO, part: Part, digest: Digest, progress: Progress) -> None:
    """Raises ``UsageError`` where that part of the file is not what the manifest says."""
    hasher, left = hashlib.new(digest.algorithm, usedforsecurity=False), part.size_bytes
    stream.seek(part.offset)
    while chunk := stream.read(min(left, _CHUNK_BYTES)):
        hasher.update(chunk)
        left -= len(chunk)
        progress.advance(len(chunk))
    if hasher.hexdigest() != digest.hex:
        raise UsageError(
            f"{name} is not what the package's manifest says",
            hint="was it copied whole? get it again",
        )
