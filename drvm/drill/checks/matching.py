"""A user's regular expression on a guest's text: in a process that is ended when it takes too long.

A guest that knows the pattern can make some patterns backtrack for longer than anybody lives.
"""

from __future__ import annotations

import functools
import json
import sys

from drvm.core.errors import AgentError, ProcessFailed
from drvm.core.process import SystemProcesses

LIMIT_S = 10.0
_MAX_FOUND_CHARS = 400
_PROGRAM = f"""\
import json, re, sys
pattern, text = json.load(sys.stdin)
found = re.search(pattern, text, re.MULTILINE)
json.dump(found and found.group()[:{_MAX_FOUND_CHARS}], sys.stdout)
"""


@functools.lru_cache(maxsize=8)  # checks are tried again, often on the same text
def search(pattern: str, text: str, limit_s: float = LIMIT_S) -> str | None:
    """The beginning of what matches first; ``^`` and ``$`` match at every line. ``None`` where
    nothing does. Raises ``AgentError`` where that is not known in time."""
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    try:
        asked = json.dumps([pattern, text]).encode()
        found = json.loads(SystemProcesses().run(argv, stdin=asked, timeout_s=limit_s).stdout)
    except ProcessFailed as problem:
        raise AgentError(
            f"whether the guest's text matches {pattern} was not known within {limit_s:g} s: "
            f"{problem.message}"
        ) from None
    return str(found) if found is not None else None
