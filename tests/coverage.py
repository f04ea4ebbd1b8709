"""``python -m tests.coverage``: do the tests of what must lose nothing take every branch of it?

Commit, collection, retention and crypto, measured under their own unit tests alone. Prints the
table, and ends with 1 where a line or a branch was not taken. A line that can't be reached says why
beside it: ``# pragma: no cover - reason``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEASURED = (
    *(f"drvm/repository/{name}.py" for name in ("crypto", "generations", "keyring", "keys")),
    *(f"drvm/repository/{name}.py" for name in ("manifest", "need", "paper", "pins", "points")),
    *(f"drvm/upkeep/{name}.py" for name in ("agreement", "anew", "gc", "locks", "prune")),
    *(f"drvm/upkeep/{name}.py" for name in ("retention", "retire", "rewrite", "survey")),
)
TESTS = (
    *(f"tests/unit/repository/test_{name}.py" for name in ("crypto", "keyring", "keys")),
    *(f"tests/unit/repository/test_{name}.py" for name in ("manifest", "paper", "pins")),
    *(f"tests/unit/repository/test_{name}.py" for name in ("points", "newest_point")),
    *(f"tests/unit/upkeep/test_{name}.py" for name in ("agreement", "gc", "locks", "prune")),
    *(f"tests/unit/upkeep/test_{name}.py" for name in ("repair", "retention", "retire")),
    "tests/unit/upkeep/test_rewrite.py",
)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        coverage = [sys.executable, "-m", "coverage"]
        options = [f"--data-file={scratch}/data", f"--include={','.join(MEASURED)}"]
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        done = subprocess.run([*coverage, "run", "--branch", *options, *tests], cwd=ROOT)
        if done.returncode:
            return done.returncode
        report = [*coverage, "report", "--show-missing", "--fail-under=100", *options]
        return int(subprocess.run(report, cwd=ROOT).returncode > 0)


if __name__ == "__main__":
    sys.exit(main())
