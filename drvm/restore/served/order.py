"""What a process is told on its standard input: bytes in lines of base64, up to an empty line.

Secrets are told so: a pipe is seen by nobody else, arguments and environments are.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
from typing import BinaryIO

from drvm.core.errors import ProcessFailed
from drvm.core.process import Child

_LINE_BYTES = 3000
_MAX_LINES = 1024


def tell_order(child: Child, order: bytes) -> None:
    """To a child that was spawned with ``talk``. One that does not listen has ended, and has said
    why elsewhere."""
    text = base64.b64encode(order).decode()
    with contextlib.suppress(ProcessFailed):
        for start in range(0, len(text), _LINE_BYTES):
            child.tell(text[start : start + _LINE_BYTES])
        child.tell("")


def hear_order(stream: BinaryIO) -> bytes:
    """The other side. Raises ``ValueError`` for what is no order."""
    lines = itertools.takewhile(bytes.strip, itertools.islice(stream, _MAX_LINES))
    return base64.b64decode(b"".join(line.strip() for line in lines), validate=True)
