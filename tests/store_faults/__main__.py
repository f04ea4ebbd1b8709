"""``python -m tests.store_faults [--positions 10] [--seed N] [--json FILE] [TASK ...]``

Every kind of fault at that many positions of each task, half of them lasting; a table of what
came of it. Exit code 1 where anything came that must not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.lab.services import seaweedfs
from tests.store_faults.judge import TASKS, Judge, Verdict
from tests.store_faults.kinds import KINDS
from tests.store_faults.proxy import Proxy


def trials(judge: Judge, task: str, positions: int) -> list[Verdict]:
    verdicts = []
    for kind in KINDS:
        requests = judge.requests(task, kind)
        places = sorted({number * requests // positions for number in range(positions)})
        for number, place in enumerate(places if requests else ()):
            verdicts.append(judge.trial(task, kind, place, lasting=number % 2 == 1))
            if verdicts[-1].problems:
                print(verdicts[-1], flush=True)
    return verdicts


def table(verdicts: list[Verdict]) -> str:
    lines = [f"{'kind':20}" + "".join(f"{task:>24}" for task in TASKS)]
    for kind in KINDS:
        line = f"{kind.name:20}"
        for task in TASKS:
            mine = [one for one in verdicts if (one.kind, one.task) == (kind.name, task)]
            well = sum(not one.told for one in mine)
            wrong = sum(bool(one.problems) for one in mine)
            words = f"{well} well, {len(mine) - well} told"
            line += f"{words + (f', {wrong} WRONG' if wrong else '') if mine else '-':>24}"
        lines.append(line)
    wrong = sum(bool(one.problems) for one in verdicts)
    struck = sum(one.struck for one in verdicts)
    return "\n".join([*lines, f"{len(verdicts)} trials, {struck} requests struck, {wrong} wrong"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.store_faults")
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], default=[])
    parser.add_argument("--positions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "weed").mkdir()
        with seaweedfs(directory / "weed", SystemProcesses(), SystemClock()) as server:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            proxy = Proxy(server.endpoint)
            judge = Judge(directory / "judge", server, proxy, "store-faults", asked.seed)
            try:
                verdicts = [
                    verdict
                    for task in asked.tasks or TASKS
                    for verdict in trials(judge, task, asked.positions)
                ]
            finally:
                judge.close()
                proxy.close()
    print(table(verdicts))
    if asked.json is not None:
        asked.json.write_text(json.dumps([dataclasses.asdict(one) for one in verdicts], indent=1))
    return int(any(one.problems for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
