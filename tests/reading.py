"""What a ``BlockReader`` reads, as bytes."""

from __future__ import annotations

from drvm.host.disks import BlockReader


def read(reader: BlockReader, offset: int, length: int) -> bytes:
    data = bytearray(b"\xaa" * length)  # a reader that leaves some of it alone is found out
    reader.read_into(offset, memoryview(data))
    return bytes(data)
