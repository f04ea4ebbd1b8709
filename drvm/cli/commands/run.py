"""``drvm run JOB``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation, require_config
from drvm.cli.jobs import doing_of
from drvm.cli.output import Column
from drvm.config.settings import Settings
from drvm.core.errors import DrvmError, UsageError
from drvm.core.progress import NoProgress, Progress
from drvm.core.units import format_bytes
from drvm.daemon.alone import Ended, run_alone
from drvm.daemon.task import Task
from drvm.daemon.tasks import Job, job_named, jobs_of
from drvm.daemon.tasks_fleet import FleetWatch, View
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.wiring.fleet import Fleet
from drvm.wiring.timetable import planned_jobs

_OF_REPOSITORY = View(Fleet((), ()), {})
_SAY_MORE = {
    "prune": "drvm prune --dry-run says which points",
    "gc": "drvm gc --dry-run says which packs",
    "copy": "drvm copy --dry-run says which points",
}


def _complete(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The words of the names of jobs, from the config if it can be read."""
    said = list(ctx.params.get("words") or ())
    found: dict[str, None] = {}
    with contextlib.suppress(DrvmError):
        invocation: Invocation = ctx.obj
        for job in planned_jobs(invocation.settings()):
            words = job.name.split()
            if words[: len(said)] == said and len(words) > len(said):
                found.setdefault(words[len(said)])
    return [CompletionItem(word) for word in found if word.startswith(begun)]


@click.command("run")
@click.argument("words", nargs=-1, metavar="JOB", shell_complete=_complete)
@click.option("--list", "show", is_flag=True, help="List the jobs of the config.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; touch nothing.")
@click.pass_obj
def command(invocation: Invocation, words: tuple[str, ...], show: bool, dry_run: bool) -> int:
    """Run one job of the config now, to its end: for timers of your own instead of the daemon.

    JOB is called as in the config and the daemon's log: backup POLICY, drill POLICY, copy NAME,
    prune, gc, check or locks. It does what the daemon would do, hooks included, one VM after the
    other, and is kept in the record that drvm status and the report tell. Limits, blackouts and
    retries are not asked. Ends with 3 where something is to be looked at, and otherwise as the
    first VM that failed.

    \b
    Examples:
      drvm run --list
      drvm run backup nightly
      drvm run prune
    """
    require_config(invocation)
    settings = invocation.settings()
    if show:
        if words or dry_run:
            raise UsageError("--list lists all jobs", hint="drvm run --list")
        _show_jobs(invocation, jobs_of(settings, doing_of(invocation, settings)))
        return DONE
    if not words:
        raise UsageError("which job?", hint="drvm run --list")
    invocation.log_unattended()
    doing = doing_of(invocation, settings)
    job = job_named(jobs_of(settings, doing), " ".join(words))
    with contextlib.ExitStack() as stack:
        view = _OF_REPOSITORY
        if job.needs_fleet:
            watch = FleetWatch(doing.open_wiring, invocation.clock)
            stack.callback(watch.close)
            view = watch.view()
        tasks = job.tasks(view)
        if dry_run:
            _show_tasks(invocation, job, tasks)
            return DONE
        ended = _run(invocation, settings, tasks)
    return _tell(invocation, job, view, ended)


def _run(invocation: Invocation, settings: Settings, tasks: Sequence[Task]) -> list[Ended]:
    path = Path(settings.state_dir) / RUNS_FILE
    with RunLog(path, invocation.clock) as history, contextlib.ExitStack() as stack:
        progress: Progress = NoProgress()  # the log tells where there is no terminal
        if invocation.stderr.isatty():
            progress = stack.enter_context(invocation.progress())
        ended = list(run_alone(tasks, history, invocation.clock, progress))
        problem = history.problem
    if problem is not None:
        invocation.warn(f"what was done may not be on record: {problem}")
    return ended


def _tell(invocation: Invocation, job: Job, view: View, ended: Sequence[Ended]) -> int:
    """The code that the first failure has, else whether something is to be looked at."""
    for _, error in view.fleet.away:
        invocation.warn(f"{error.message} ({error.hint})" if error.hint else error.message)
    if not ended:
        invocation.warn(f"there is nothing to do for {job.name}: drvm vms shows which VMs it has")
    runs = [end.run for end in ended]
    if invocation.output.json:
        invocation.output.document({"job": job.name, "runs": [_fields(end) for end in ended]})
    else:
        columns = [Column("vm"), Column("state"), Column("stored", right=True), Column("result")]
        columns.append(Column("message", wraps=True))
        rows = [
            [run.vm, run.state, format_bytes(run.stored_bytes), run.result, run.message]
            for run in runs
        ]
        invocation.output.table(columns, rows)
    errors = [end.error for end in ended if end.error is not None]
    if errors:
        return errors[0].exit_code
    if any(run.state in ("failed", "stopped", "lost") for run in runs):
        return 1
    warned = view.fleet.away or not ended or any(run.state == "warned" for run in runs)
    return DONE_WITH_WARNINGS if warned else DONE


def _fields(end: Ended) -> dict[str, Any]:
    run = end.run
    return {
        "id": run.id,
        "vm": run.vm,
        "vm_uuid": run.vm_uuid,
        "host": run.host,
        "state": run.state,
        "message": run.message,
        "hint": run.hint,
        "result": run.result,
        "stored_bytes": run.stored_bytes,
        "started": run.started,
        "ended": run.ended,
    }


def _show_jobs(invocation: Invocation, jobs: Sequence[Job]) -> None:
    if invocation.output.json:
        fields = [
            {
                "job": job.name,
                "kind": job.kind,
                "schedule": job.timing.schedule if job.timing is not None else None,
                "time_zone": job.timing.time_zone if job.timing is not None else None,
                "about": job.about,
            }
            for job in jobs
        ]
        invocation.output.document({"jobs": fields})
        return
    columns = [Column("job"), Column("schedule"), Column("time zone"), Column("what", wraps=True)]
    rows = [
        [
            job.name,
            job.timing.schedule if job.timing is not None else "by hand",
            job.timing.time_zone if job.timing is not None else "",
            job.about,
        ]
        for job in jobs
    ]
    invocation.output.table(columns, rows)


def _show_tasks(invocation: Invocation, job: Job, tasks: Sequence[Task]) -> None:
    if invocation.output.json:
        fields = [{"vm": t.vm, "vm_uuid": t.vm_uuid, "host": t.host} for t in tasks]
        invocation.output.document({"job": job.name, "runs": fields})
        return
    invocation.output.line(f"{job.name}: {job.about}")
    for task in tasks if job.needs_fleet else ():
        invocation.output.line(f"  {task.vm} on {task.host}" if task.host else f"  {task.vm}")
    if job.kind in _SAY_MORE:
        invocation.output.line(f"  {_SAY_MORE[job.kind]}")
