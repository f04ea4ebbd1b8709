"""``python -m tests.hostile PLACE KIND... [--long] [--only CASE]``: the cases of each kind, one
after the other, in the directory ``PLACE``; a line of JSON for each. Ends with 1 where not all
were tried.

Each kind has a process of its own, with no more address space than what it needs at the beginning
and ``ROOM`` beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from drvm.repository import keys
from drvm.store.memory import MemoryStore
from tests.hostile import trial
from tests.hostile.case import harmless
from tests.hostile.corpus import KINDS, PLANTED
from tests.hostile.forge import Forge
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.test_round_trip import noise

ROOM = 1 << 30
WALL_S = 120.0
"""Of one trial, however busy the machine is. Then the process ends and says where it was."""


def cheap_keys() -> None:
    """A tenth of a second for each key is too much for hundreds of cases."""
    keys.MEMORY_KIB, keys.PASSES = 64, 1
    keys._MEMORY_BOUNDS, keys._PASSES_BOUNDS = range(64, 1 << 20), range(1, 17)


def honest() -> tuple[Vault, list[bytes]]:
    vault = new_vault(MemoryStore())
    disks = [noise(200_000, 1) + bytes(100_000) + b"text" * 10_000]
    vault.save(disks)
    return vault, disks


def trials(kind: str, options: argparse.Namespace) -> None:
    if kind != "costs":
        cheap_keys()
    vault, disks = honest()
    keyring = vault.repository.keyring

    def forge() -> Forge:
        return Forge(vault.store, keyring._opened.keys, vault.repository.id)

    trial.run("warm-up", harmless(lambda forge: forge.point()), forge(), options.place, disks)
    limit = trial.status_kib("VmPeak") * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (trial.MAX_FILE_BYTES, trial.MAX_FILE_BYTES))
    for name, case in KINDS.get(kind, PLANTED).items():
        if name != options.only if options.only else case.long != options.long:
            continue
        sys.stderr.write(f"{kind}: {name}\n")
        faulthandler.dump_traceback_later(WALL_S, exit=True)
        done = trial.run(name, case, forge(), options.place, disks)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"kind": kind, **dataclasses.asdict(done)}), flush=True)


def apart(kind: str, options: argparse.Namespace) -> bool:
    """Whether all went well, in a process that needs no second look at the imports."""
    child = os.fork()
    if child == 0:
        try:
            trials(kind, options)
            os._exit(0)
        finally:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("kinds", nargs="+", choices=[*KINDS, "planted"])
    parser.add_argument("--long", action="store_true", help="those that take long, and no others")
    parser.add_argument("--only", metavar="CASE")
    options = parser.parse_args()
    os.chdir(options.place)
    ended = [apart(kind, options) for kind in options.kinds]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
