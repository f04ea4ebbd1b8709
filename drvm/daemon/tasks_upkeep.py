"""What the jobs of a repository do when their time has come."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from drvm.config.repositories import CopyConfig
from drvm.config.upkeep import RepositoryCheckConfig
from drvm.core.errors import DamageFound
from drvm.core.progress import Progress
from drvm.daemon.task import Outcome
from drvm.daemon.tasks_vms import OpenWiring
from drvm.repository.checks import Share
from drvm.upkeep.prune import run_prune
from drvm.wiring.copies import damage_of, plan_copy_of, run_copy_of
from drvm.wiring.jobs import watch_standing
from drvm.wiring.upkeep import check_of, collect, lengthen_locks, plan_prune_of

log = logging.getLogger("drvm.daemon")


@dataclass(frozen=True, slots=True)
class UpkeepWork:
    """Of one config. Each but ``room`` is what a run of its job does."""

    open_wiring: OpenWiring

    def room(self, _progress: Progress) -> None:
        """For what stands between backups, also by a policy that wants it no more."""
        with self.open_wiring() as wiring:
            for folded in watch_standing(wiring):
                level = logging.WARNING if folded.ok else logging.ERROR
                log.log(level, "%s: %s", folded.name, folded.detail)

    def prune(self, progress: Progress) -> Outcome:
        progress.stage("asking which points the rules keep")
        with self.open_wiring() as wiring:
            plan = plan_prune_of(wiring)
            progress.advance(0)
            pruned = run_prune(wiring.repository(), plan.going)
        if plan.refusal is not None:
            raise plan.refusal
        in_doubt = len({d.point.series for d in plan.decisions if d.doubt})
        words = f"{len(pruned.ended)} of {len(plan.decisions)} points removed"
        if in_doubt:
            words += f"; of {in_doubt} machines nobody can tell the policy: theirs stay"
        log.info("%s", words)
        for problem in plan.problems:
            log.warning("%s", problem)
        return Outcome(warned=bool(plan.problems), message=words, hint="drvm prune --dry-run")

    def gc(self, progress: Progress) -> Outcome:
        with self.open_wiring() as wiring:
            done, retired = collect(wiring, progress)
        words = f"{done.condemned} packs condemned, {done.deleted} deleted"
        log.info("%s", words)
        if retired.failed:
            words += f"; {retired.failed} points could not be written anew"
            log.warning("%s", words)
        return Outcome(
            warned=bool(retired.failed), message=words, hint="drvm check" * bool(retired.failed)
        )

    def check(self, config: RepositoryCheckConfig, progress: Progress) -> Outcome:
        percent = config.read_data_percent
        with self.open_wiring() as wiring:
            result = check_of(wiring, Share(percent=percent) if percent else None, progress)
        words = f"{result.points} points, {result.read_packs} of {result.packs} packs read"
        log.info("%s", words)
        for line in (*result.finds.harmless, *result.finds.unfinished):
            log.warning("%s", line)
        if result.damaged:
            hint = "drvm check says which; back up these machines"
            return Outcome("damage", failure=DamageFound(result.verdict, hint=hint))
        return Outcome(message=words)

    def locks(self, progress: Progress) -> Outcome:
        with self.open_wiring() as wiring:
            plan, lengthened = lengthen_locks(wiring, progress)
        words = f"{lengthened} of {plan.objects} objects locked until {plan.until}"
        log.info("%s", words)
        if plan.damage is not None:
            raise plan.damage
        return Outcome(message=words)

    def copy(self, copy: CopyConfig, open_target: OpenWiring, progress: Progress) -> Outcome:
        with self.open_wiring() as wiring, open_target() as other:
            plan = plan_copy_of(wiring, other, copy=copy)
            for problem in plan.problems:
                log.warning("%s: %s", copy.name, problem)
            copied = run_copy_of(wiring, other, plan, progress)
        if damage := damage_of(copied):
            raise damage
        words = f"{len(copied.points)} points copied"
        log.info("%s: %s", copy.name, words)
        stored_bytes = sum(point.manifest.stored_bytes for point in copied.points)
        warned = bool(plan.problems)
        return Outcome(stored_bytes=stored_bytes, warned=warned, message=words)
