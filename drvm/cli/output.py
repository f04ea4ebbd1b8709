"""What goes to stdout: tables and lines for people, or one JSON document for machines.

Text from outside never reaches a terminal raw: control characters are written out, and JSON is
pure ASCII.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TextIO

import msgspec

from drvm.core.text import printable
from drvm.daemon.logs import LogFormat

_MIN_WRAPPED_CHARS = 24
_WIDER_THAN_ANY = 100_000


@dataclass(slots=True)
class Flags:
    """What the options that every verb takes have said so far. ``log_format``: ``None`` where
    neither they nor the environment say one."""

    json: bool = False
    quiet: bool = False
    verbosity: int = 0
    log_format: LogFormat | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """``wraps``: on a terminal that is too narrow its cells take several lines. All others stay
    whole, so that an id can be copied; the terminal itself then breaks the line."""

    title: str
    right: bool = False
    wraps: bool = False


class Output:
    """``document_written``: with ``--json`` there is exactly one, also after an error."""

    def __init__(self, stream: TextIO, flags: Flags, *, colour: bool) -> None:
        self._stream = stream
        self._flags = flags
        self._colour = colour
        self.document_written = False

    @property
    def json(self) -> bool:
        return self._flags.json

    @property
    def log_format(self) -> LogFormat | None:
        return self._flags.log_format

    def document(self, fields: Mapping[str, Any]) -> None:
        """The whole answer, sorted by key. Moments, paths, structs and dataclasses may be in it."""
        if self.document_written:
            raise AssertionError("a second JSON document")
        plain = msgspec.to_builtins(fields, enc_hook=_encode)
        self._stream.write(json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n")
        self.document_written = True

    def flush(self) -> None:
        """For who waits for an answer while we go on."""
        self._stream.flush()

    def line(self, text: str = "") -> None:
        """For people; nothing with ``--json``."""
        if not self.json:
            self._stream.write(printable(text, len(text)) + "\n")

    def content(self, chunks: Iterable[bytes]) -> None:
        """Bytes as they are; to a terminal as text, without control characters."""
        if self._stream.isatty():
            decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
            for chunk in chunks:
                text = decoder.decode(chunk)
                self._stream.write(printable(text, len(text), lines=True))
            self._stream.write(printable(decoder.decode(b"", final=True)))
            return
        self._stream.flush()
        for chunk in chunks:
            self._stream.buffer.write(chunk)

    def block(self, text: str) -> None:
        """Several lines, as they are but for their control characters."""
        if not self.json:
            self._stream.write(printable(text, len(text), lines=True).rstrip("\n") + "\n")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns; on a terminal with bold titles and wrapped cells."""
        if self.json:
            return
        cells = [[printable(cell, len(cell)) for cell in row] for row in rows]
        if self._stream.isatty():
            self._rich_table(columns, cells)
        else:
            self._plain_table(columns, cells)

    def _plain_table(self, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
        lines = [[column.title.upper() for column in columns], *cells]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            padded = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, columns, strict=True)
            )
            self._stream.write("  ".join(padded).rstrip() + "\n")

    def _rich_table(self, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            title = column.title.upper()
            whole = max(map(cell_len, (title, *(row[index] for row in cells))))
            table.add_column(
                title,
                justify="right" if column.right else "left",
                no_wrap=not column.wraps,
                # rich would take a text's longest word for what it needs
                min_width=_MIN_WRAPPED_CHARS if column.wraps else whole,
                overflow="fold",
            )
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        needed = Console(width=_WIDER_THAN_ANY).measure(table).minimum
        console = Console(file=self._stream, no_color=not self._colour, highlight=False)
        console.width = max(console.width, needed)
        console.print(table)


def _encode(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"{type(value)} in a JSON document")
