"""Faults between drvm and a real S3 server, injected by a proxy: no false success, no wrong byte.

Here every other kind strikes once; ``python -m tests.store_faults`` tries all at ten positions of
each task, and prints a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.lab.services import S3Server
from tests.store_faults.judge import TASKS, Judge
from tests.store_faults.kinds import KINDS, Kind
from tests.store_faults.proxy import Proxy

pytestmark = pytest.mark.s3
SOME = KINDS[::2]


@pytest.fixture(scope="module")
def judge(seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        proxy = Proxy(seaweedfs.endpoint)
        directory: Path = tmp_path_factory.mktemp("store-faults")
        made = Judge(directory, seaweedfs, proxy, "store-faults", seed=1)
        yield made
        made.close()
        proxy.close()


@pytest.mark.parametrize("turn", range(len(SOME)), ids=[kind.name for kind in SOME])
def test_a_fault_of_the_store_costs_an_error_at_most(judge: Judge, turn: int) -> None:
    """The task changes from kind to kind, among those that the kind can strike."""
    kind = SOME[turn]
    able = [task for task in TASKS if judge.requests(task, kind)]
    task = able[turn % len(able)]
    lasting = turn // len(TASKS) % 2 == 1
    verdict = judge.trial(task, kind, turn * 7 % judge.requests(task, kind), lasting=lasting)
    if not verdict.struck:  # this run asked less than the one whose requests were counted
        assert not verdict.problems, verdict
        verdict = judge.trial(task, kind, 0, lasting=lasting)
    assert verdict.struck, verdict
    assert not verdict.problems, verdict


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_wherever_it_strikes(judge: Judge, kind: Kind, task: str) -> None:
    requests = judge.requests(task, kind)
    for number, place in enumerate(sorted({n * requests // 10 for n in range(10)})):
        verdict = judge.trial(task, kind, place, lasting=number % 2 == 1)
        assert not verdict.problems, verdict
