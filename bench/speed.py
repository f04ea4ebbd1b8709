"""All that is said of speed, measured at once: ``python -m bench.speed --dir DIR [--repeat N]``.

As root, on a machine that has nothing else to do: the tables of ``bench.chunker``,
``bench.in_place``, ``bench.remote`` and ``bench.boot``, one after the other, with the load of the
machine before each. Takes some hours and 25 GiB in DIR; ends with 1 where one of them failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

_IN_DIR = ("bench.chunker", "bench.in_place", "bench.remote")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--dir", required=True, help="the disks, and room to work in")
    parser.add_argument("--repeat", default="5", help="how often each case runs")
    asked = parser.parse_args()
    failed = []
    for module in (*_IN_DIR, "bench.boot"):
        place = ["--dir", asked.dir] if module in _IN_DIR else []
        print(f"\n{module}, load {os.getloadavg()[0]:.1f}", flush=True)
        argv = [sys.executable, "-m", module, *place, "--repeat", asked.repeat]
        if subprocess.run(argv, check=False).returncode:
            failed.append(module)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
