"""All that one config makes of the daemon: its jobs, what it watches, what may be asked for.

A reload makes new ones, and closes those before.
"""

from __future__ import annotations

from collections.abc import Sequence

from drvm.config.settings import Settings
from drvm.core.clock import Clock
from drvm.core.errors import UsageError
from drvm.core.text import printable
from drvm.daemon.task import Chore, Plan, Task
from drvm.daemon.tasks import Doing, Job, jobs_of, plan_of
from drvm.daemon.tasks_fleet import FleetWatch, View
from drvm.daemon.tasks_upkeep import UpkeepWork

ROOM_EVERY_S = 60.0


class Duties:
    """``plan`` is for one thread; ``asked`` and ``close`` are for any."""

    def __init__(self, settings: Settings, doing: Doing, clock: Clock) -> None:
        self.settings = settings
        self.jobs: tuple[Job, ...] = jobs_of(settings, doing)
        self._watch = FleetWatch(doing.open_wiring, clock, tells=True)
        self._upkeep = UpkeepWork(doing.open_wiring)
        self._view: View | None = None

    @property
    def scheduled(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.timing is not None)

    def plan(self) -> Plan:
        """The engine's source. Raises what the repository raises."""
        self._view = self._watch.view()
        return plan_of(self.jobs, self._view, self.settings)

    def chores(self) -> Sequence[Chore]:
        return (Chore("room for standing overlays", ROOM_EVERY_S, self._upkeep.room),)

    def asked(self, kind: str, vm_uuid: str) -> Task:
        """What somebody wants to have done now, to one machine or, without one, to the repository.
        Raises ``UsageError``."""
        if self._view is None:
            raise UsageError("the hosts have not been looked at yet", hint="try again in a moment")
        for job in self.jobs:
            for task in job.tasks(self._view) if job.kind == kind else ():
                if vm_uuid == task.vm_uuid or vm_uuid in task.touches:
                    return task
        raise UsageError(
            f"there is no {printable(kind, 20)} of that VM",
            hint="drvm vms shows which VMs a policy protects, and whether their hosts answer",
        )

    def close(self) -> None:
        self._watch.close()
