"""Which points a copy means, and what the daemon makes of the sections of the config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.errors import DamageFound, UnknownPoint
from drvm.core.process import Processes
from drvm.core.progress import NoProgress
from drvm.daemon.task import Task
from drvm.daemon.tasks import Doing, job_named, jobs_of
from drvm.daemon.tasks_fleet import View
from drvm.repository.layout import PACKS
from drvm.repository.points import Point
from drvm.wiring.copies import plan_copy_of
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise

__all__ = ["cheap_key_derivation"]

SETTINGS = resolve(
    parse_config(
        b"""
copies:
  - {name: webs, repository: {url: "file:///a"}, vms: ["web*"], schedule: "30 6 * * *"}
  - {name: by-hand, repository: {url: "file:///b"}}
""",
        "c.yaml",
        {},
    ),
    {},
)
DB = "22222222-2222-4333-8444-555555555555"


def wiring(vault: Vault) -> Any:
    """As much of a wiring as a copy uses."""
    return SimpleNamespace(
        repository=lambda: vault.repository, writer="here", level=1, clock=FakeClock()
    )


@pytest.fixture
def source() -> Vault:
    """Two points of web1, then one of db1."""
    vault = new_vault()
    for seed in range(2):
        vault.save([noise(SMALL, seed)])
    made = vault.save([noise(SMALL, 2)])
    vault.repository.end_point(made)
    vault.repository.commit(replace(made.manifest, vm="db1", vm_uuid=DB))
    return vault


def going(source: Vault, *wanted: str, section: int | None = None) -> list[Point]:
    copy = SETTINGS.copies[section] if section is not None else None
    plan = plan_copy_of(wiring(source), wiring(new_vault()), wanted, copy)
    return list(plan.going)


def test_without_a_word_all_points_are_meant_or_those_of_the_section(source):
    points = list(source.repository.points().points)
    assert going(source) == points
    assert going(source, section=0) == points[:2]
    assert going(source, section=1) == points


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (lambda p: ["web1"], [0, 1]),
        (lambda p: [DB], [2]),
        (lambda p: ["web1@latest"], [1]),
        (lambda p: [p[0].id], [0]),
        (lambda p: [p[0].id[:8], "db1"], [0, 2]),
        (lambda p: ["db1", "web1", p[0].id], [0, 1, 2]),
    ],
)
def test_words_name_all_points_of_a_vm_or_one(
    source: Vault, words: Callable[[tuple[Point, ...]], list[str]], meant: list[int]
) -> None:
    points = source.repository.points().points
    assert going(source, *words(points), section=0) == [points[n] for n in meant]


def test_a_word_that_means_nothing_is_refused(source):
    with pytest.raises(UnknownPoint):
        going(source, "web9")


def copy_tasks(source: Any, target: Any) -> Sequence[Task]:
    doing = Doing(source, {"webs": target, "by-hand": target}, cast(Processes, None))
    return job_named(jobs_of(SETTINGS, doing), "copy webs").tasks(cast(View, None))


def test_the_daemon_copies_by_the_sections_that_have_a_schedule(source):
    target = new_vault()

    @contextlib.contextmanager
    def opened(vault: Vault) -> Iterator[Any]:
        yield wiring(vault)

    (task,) = copy_tasks(lambda: opened(source), lambda: opened(target))
    assert (task.timing.schedule, task.timing.time_zone) == ("30 6 * * *", "UTC")
    assert task.run(NoProgress()).message == "2 points copied"
    assert {point.manifest.vm for point in target.repository.points().points} == {"web1"}
    assert target.load(target.repository.points().points[1]) == [noise(SMALL, 1)]


def test_the_daemon_says_what_could_not_be_copied(source):
    for name in [name for name in source.store.objects if name.startswith(PACKS)]:
        source.store.delete(name)
    broken, target = source.reopen(), new_vault()
    opened = lambda vault: contextlib.nullcontext(wiring(vault))  # noqa: E731
    (task,) = copy_tasks(lambda: opened(broken), lambda: opened(target))
    with pytest.raises(DamageFound) as caught:
        task.run(NoProgress())
    assert "and 1 more" in caught.value.message
