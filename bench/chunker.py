"""What drvm costs and stores, beside what it must reach.

``python -m bench.chunker --dir DIR [--json FILE] [--repeat 5] [THEME ...]``, as root. DIR holds the
disks of ``bench.data``, made where they are missing, and room to work in (about 15 GiB in all).
Everything that is compared runs by turns in the same run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench import parts
from bench.backups import full_backup
from bench.data import disk
from bench.harness import Bench, Figure, as_rows, print_table
from bench.memory import thin_disk
from bench.parts import Theme, by_command
from bench.points import one_more
from bench.restores import full_restore
from bench.servers import apart
from bench.storing import stored

THEMES: dict[str, Theme] = {
    "backup": full_backup,
    "servers": apart,
    "stored": stored,
    "restore": full_restore,
    "diskmap": by_command("diskmap", parts.diskmap),
    "aged": by_command("aged", parts.aged),
    "memory": thin_disk,
    "points": one_more,
    "kernel": by_command("kernel", parts.kernel),
    "index": by_command("index", parts.index),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chunker", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="THEME", help=", ".join(THEMES))
    parser.add_argument("--dir", type=Path, required=True, help="the disks, and room to work in")
    parser.add_argument("--repeat", type=int, default=5, help="how often each case runs")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    if unknown := set(asked.themes) - set(THEMES):
        parser.error(f"there is no theme {', '.join(unknown)}; there are {', '.join(THEMES)}")
    directory = asked.dir.absolute()
    judged: dict[str, list[Figure]] = {}
    for name in asked.themes or THEMES:
        scratch = Path(tempfile.mkdtemp(prefix="work-", dir=directory))
        try:
            judged[name] = THEMES[name](Bench(partial(disk, directory), scratch, asked.repeat))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"\n{name}")
        print_table(judged[name])
    if asked.json is not None:
        told = {name: as_rows(figures) for name, figures in judged.items()}
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
