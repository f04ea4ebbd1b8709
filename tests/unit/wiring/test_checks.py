"""What the daemon checks by itself."""

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import ConfigError, DamageFound
from drvm.core.process import Processes
from drvm.core.progress import NoProgress
from drvm.daemon.task import Task
from drvm.daemon.tasks import Doing, jobs_of, plan_of
from drvm.daemon.tasks_fleet import View
from drvm.repository.layout import PACKS
from drvm.wiring.fleet import Fleet
from tests.unit.repository.conftest import Vault, cheap_key_derivation, vault
from tests.unit.repository.test_round_trip import SMALL, noise

__all__ = ["cheap_key_derivation", "vault"]


def check_tasks(vault: Vault, section: str) -> Sequence[Task]:
    environ = {"DRVM_REPOSITORY": "file:///srv/drvm"}
    settings = resolve(parse_config(f"check: {section}\n".encode(), "c.yaml", {}), environ)
    wiring: Any = SimpleNamespace(
        repository=lambda: vault.repository, writer="here", clock=SystemClock()
    )
    doing = Doing(lambda: contextlib.nullcontext(wiring), {}, cast(Processes, None))
    return plan_of(jobs_of(settings, doing), View(Fleet((), ()), {}), settings).tasks


def test_the_daemon_reads_a_share_each_time_and_tells_of_damage(vault):
    vault.save([noise(SMALL, 1)])
    (task,) = check_tasks(vault, '{schedule: "0 14 * * *", read_data_percent: 50}')
    assert (task.job, task.timing.schedule, task.timing.time_zone) == ("check", "0 14 * * *", "UTC")
    for _ in range(2):
        task.run(NoProgress())
    first, second = (past.record for past in vault.repository.checks.history().runs)
    assert first.packs + second.packs == 2 and first.arc.end == second.arc.start
    for name in [name for name in vault.store.objects if name.startswith(PACKS)]:
        vault.store.delete(name)
    found = task.run(NoProgress())
    assert isinstance(found.failure, DamageFound) and found.result == "damage"
    assert "1 of 1 points are damaged" in found.failure.message


def test_without_a_schedule_nothing_is_checked(vault):
    assert check_tasks(vault, "{read_data_percent: 0}") == []


@pytest.mark.parametrize("percent", [-1, 101, "a"])
def test_what_is_no_share_is_a_mistake_of_the_config(vault, percent):
    with pytest.raises(ConfigError):
        check_tasks(vault, f"{{read_data_percent: {percent}}}")
