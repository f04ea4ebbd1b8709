"""Doing what a plan says, measuring it, and leaving nothing behind."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from drvm.core.errors import DrvmError, Interrupted
from drvm.drill.checks.base import Wire
from drvm.drill.group import GroupPlan
from drvm.drill.machine import Machine
from drvm.drill.place import Note, made, tear_down
from drvm.drill.plan import DrillPlan, network_xml
from drvm.drill.tools import Heeding, Member, Titled, Tools
from drvm.drill.ways import way_into
from drvm.report.model import DrillResult


def run_drill(plan: DrillPlan, tools: Tools) -> DrillResult:
    """Bring one machine up in isolation, check it, tear it down.

    A restore that breaks off, a guest that does not start and a check that does not pass are a
    result with ``passed`` false. It is passed when every check is: the targets for RTO and RPO
    are judged beside it. The RTO is the time of planning and of everything from the call of this
    function until the last check passed.

    Everything made is removed also when this is interrupted; what could not be removed is a
    warning. A SIGKILL ends the machine (AUTODESTROY) and leaves its directory and network, and
    volumes on another host, which ``leftovers`` finds.
    """
    begun_s = tools.clock.monotonic_s()
    with Machine(plan, tools, begun_s=begun_s, plan_s=plan.plan_s) as machine:
        machine.bring_up()
        machine.check()
        machine.scan()
    return machine.result()


def run_group(plan: GroupPlan, tools: Tools) -> tuple[DrillResult, ...]:
    """Bring the machines of a group up in one isolated network, stage by stage; a result for each.

    The machines of a stage are started one after the other and boot side by side. The next stage
    begins when all checks of the one before have passed and its wait is over. A stage that failed
    ends the drill: what would have come is told as not run. All of it goes together at the end, as
    of ``run_drill``. A group that lacks members has no RTO: nobody knows what it would have been.
    """
    return _Group(plan, tools).run()


class _Group:
    def __init__(self, plan: GroupPlan, tools: Tools) -> None:
        self._plan = plan
        self._tools = tools
        self._clock = Heeding(tools.clock, tools.progress)
        self._begun_s = tools.clock.monotonic_s()
        self._stages = [
            [self._machine(machine, number) for machine in stage.machines]
            for number, stage in enumerate(plan.stages, start=1)
        ]
        self._rto_s: float | None = None
        self._not_run: dict[str, str] = {}
        self._problems: list[str] = []

    def run(self) -> tuple[DrillResult, ...]:
        every = [machine for stage in self._stages for machine in stage]
        try:
            with made(self._plan.directory, Note(self._tools.host.uri), self._tools.clock):
                self._tools.trace("group-directory-made")
                try:
                    self._run()
                finally:
                    self._problems = tear_down(
                        self._tools.host, self._plan.directory, self._tools.trace, self._tools.clock
                    )
                    self._tools.trace("group-torn-down")
        except Interrupted:
            raise
        except (DrvmError, OSError) as error:
            self._problems.append(str(error))
            if not any(machine.was_begun for machine in every):
                words = f"not run: the group could not be made: {error}"
                self._not_run = {machine.plan.id: words for machine in every}
        for line in (*self._problems, *(f"not drilled: {one}" for one in self._plan.absent)):
            every[0].warn(f"of the group: {line}")
        return tuple(
            machine.result(group_rto_s=self._rto_s, not_run=self._not_run.get(machine.plan.id, ""))
            for machine in every
        )

    def _run(self) -> None:
        tools = self._tools
        if any(machine.network is not None for machine in self._plan.machines):
            tools.host.create_network(network_xml(self._plan.name))
            tools.trace("group-network-made")
        with self._way_in() as wire, ExitStack() as up:
            for number, stage in enumerate(self._stages, start=1):
                if number > 1:
                    self._wait(self._plan.stages[number - 2].wait_s)
                for machine in stage:
                    up.enter_context(machine)
                    machine.bring_up(wire)
                for machine in stage:
                    machine.check()
                tools.trace(f"stage-{number}-ended")
                if failed := [machine.plan.vm for machine in stage if not machine.passed]:
                    self._end_at(number, failed)
                    break
            every = [machine for stage in self._stages for machine in stage]
            for machine in every:
                machine.scan()
            times_s = [machine.rto_s for machine in every if machine.rto_s is not None]
            if len(times_s) == len(every) and not self._plan.absent:
                self._rto_s = max(times_s)

    def _way_in(self) -> AbstractContextManager[Wire | None]:
        """One for all: they are in one network."""
        plan, machines = self._plan, self._plan.machines
        network = next((machine.network for machine in machines if machine.network), None)
        cards = [card for machine in machines for card in machine.cards]
        checks = [check for machine in machines for check in machine.checks]
        return way_into(self._tools.host, network, plan.id, cards, checks, self._tools.trace)

    def _end_at(self, number: int, failed: list[str]) -> None:
        words = f"not run: stage {number} of its group failed ({', '.join(failed)})"
        for stage in self._stages[number:]:
            self._not_run |= {machine.plan.id: words for machine in stage}

    def _wait(self, wait_s: float) -> None:
        """Between two stages; in pieces, so that an end that is wanted meanwhile comes soon."""
        if wait_s:
            self._tools.progress.stage("waiting before the next stage")
        until_s = self._tools.clock.monotonic_s() + wait_s
        while (left_s := until_s - self._tools.clock.monotonic_s()) > 0:
            self._clock.sleep(min(1.0, left_s))

    def _machine(self, plan: DrillPlan, stage: int) -> Machine:
        group = self._plan
        absent = tuple(str(one) for one in group.absent)
        member = Member(group.id, stage, group.one_instant, group.alike(plan), absent)
        tools = replace(self._tools, progress=Titled(self._tools.progress, plan.vm))
        return Machine(plan, tools, begun_s=self._begun_s, plan_s=self._plan.plan_s, member=member)
