"""The paper form: the master keys as a page that people can type in again.

Six lines of 16 bytes in hexadecimal, each with its number and a check of its own, so that a
mistyped line is known as soon as it is typed; the sixth is a check of all. The page is *not*
encrypted: whoever reads it reads the repository. docs/FORMAT.md, "Paper form".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from drvm.core.errors import UsageError
from drvm.core.text import printable
from drvm.repository.crypto import KEY_BYTES, MasterKeys

LINES = 6
_LINE_BYTES = 16
_CHECK_BYTES = 2
_DIGITS = 2 * (_LINE_BYTES + _CHECK_BYTES)
_PURPOSE = b"drvm paper form 0"
_NUMBERED = re.compile(r"\s*([1-6])\s*[:.)]\s*(.*?)\s*")
_ALIKE = str.maketrans({"o": "0", "l": "1", "i": "1", "-": "", " ": "", "\t": ""})
"""What is taken for a digit, or left out, where people type."""

_PAGE = """\
drvm: paper form of a repository's keys (form 0)

Whoever has this page can read all that is in the repository, without any
passphrase. Keep it as you would the machines themselves: closed, away from
them, and in the hands of people who may see their data. It does not grow
old: passphrases may be changed as often as you like, the keys stay.

  repository  {repository_id}
  where       {location}
  printed     {printed}

{lines}

Each line: its number, eight groups of four digits (0-9, a-f), and a group
that checks the line. Line 6 checks all others.

When every passphrase is lost, or all objects below keys/: on any machine
that reaches the repository, run

  drvm --config FILE key import        (or with DRVM_REPOSITORY set)

type in the six lines, and choose a new passphrase. Nothing in the
repository is changed by that but one key slot more. Then try it out:
drvm points. To type the page in without drvm: docs/FORMAT.md, "Paper form".
"""


@dataclass(frozen=True, slots=True, repr=False)
class Paper:
    """What a page holds."""

    repository_id: str
    keys: MasterKeys


def lines(paper: Paper) -> list[str]:
    """The six lines."""
    data = bytes.fromhex(paper.repository_id) + paper.keys.seal + paper.keys.block_id
    data += _whole(data)
    rows = [data[at : at + _LINE_BYTES] for at in range(0, len(data), _LINE_BYTES)]
    return [_line(number, row) for number, row in enumerate(rows, 1)]


def page(paper: Paper, location: str, printed: str) -> str:
    """The whole page, 31 lines of at most 76 characters where ``location`` is short."""
    return _PAGE.format(
        repository_id=paper.repository_id,
        location=printable(location, 200),
        printed=printed,
        lines="\n".join(f"  {line}" for line in lines(paper)),
    )


def numbered(number: int, text: str) -> str:
    """A line as somebody typed it, with its number."""
    return text if _NUMBERED.fullmatch(text) else f"{number}: {text}"


def line_problem(number: int, text: str) -> str:
    """What is wrong with a line as somebody typed it, without or with its number; empty where
    nothing is."""
    match = _NUMBERED.fullmatch(numbered(number, text))
    if match is None or int(match[1]) != number:
        return f"this is not line {number}"
    digits = _digits(match[2])
    strange = sorted(set(re.sub("[0-9a-f]", "", digits)))
    if strange:
        return f"{printable(strange[0])!r} is no digit (0-9, a-f)"
    if len(digits) != _DIGITS:
        return f"{len(digits)} digits instead of {_DIGITS}"
    data = bytes.fromhex(digits)
    if data[_LINE_BYTES:] != _check(number, data[:_LINE_BYTES]):
        return "at least one digit is wrong"
    return ""


def read(text: Iterable[str]) -> Paper:
    """From the six lines, or the whole page, typed in or scanned. Raises ``UsageError``, naming
    every line that is missing or wrong, and quoting none."""
    found: dict[int, str] = {}
    problems = []
    for line in text:
        match = _NUMBERED.fullmatch(line)
        if match is None:
            continue
        number = int(match[1])
        problem = "it comes twice" if number in found else line_problem(number, line)
        found[number] = match[2]
        if problem:
            problems.append(f"line {number}: {problem}")
    missing = [f"line {number}: missing" for number in range(1, LINES + 1) if number not in found]
    if problems or missing:
        raise UsageError(
            f"the paper form is not right: {'; '.join([*problems, *missing])}",
            hint="each line is its number, a colon, eight groups of four digits and the check",
        )
    rows = [bytes.fromhex(_digits(found[number]))[:_LINE_BYTES] for number in sorted(found)]
    data, whole = b"".join(rows[:-1]), rows[-1]
    if _whole(data) != whole:
        raise UsageError(
            "the lines of the paper form are each right, but don't belong together",
            hint="they must all be of one page",
        )
    rid, seal = data[:_LINE_BYTES], data[_LINE_BYTES : _LINE_BYTES + KEY_BYTES]
    return Paper(rid.hex(), MasterKeys(seal, data[_LINE_BYTES + KEY_BYTES :]))


def _digits(text: str) -> str:
    return text.lower().translate(_ALIKE)


def _line(number: int, row: bytes) -> str:
    digits = (row + _check(number, row)).hex()
    groups = [digits[at : at + 4] for at in range(0, len(digits), 4)]
    return f"{number}:  {' '.join(groups[:4])}  {' '.join(groups[4:8])}   {groups[8]}"


def _check(number: int, row: bytes) -> bytes:
    return hashlib.sha256(_PURPOSE + bytes([number]) + row).digest()[:_CHECK_BYTES]


def _whole(data: bytes) -> bytes:
    return hashlib.sha256(_PURPOSE + data).digest()[:_LINE_BYTES]
