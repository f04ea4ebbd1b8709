"""The report that all pages show: gathered when somebody looks, by one thread at a time.

Gathering may take seconds (libvirt, the store), or fail. So who looks gets the last one at once,
with the reason where there is no newer one.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.errors import DrvmError
from drvm.report.attention import Concern
from drvm.report.input import ReportInput
from drvm.report.views import Overview, overview

log = logging.getLogger("drvm.web")

FRESH_S = 15.0
OLD_S = 60.0
WAIT_FOR_FIRST_S = 30.0
WAIT_FOR_NEWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``version`` grows with each; ``problem``: why it could not be renewed since."""

    report: ReportInput
    view: Overview
    version: int
    problem: str = ""

    def concerns_of(self, vm_uuid: str) -> tuple[Concern, ...]:
        every = (concern for alike in self.view.attention for concern in alike.concerns)
        return tuple(concern for concern in every if concern.vm_uuid == vm_uuid)


class Latest:
    def __init__(self, gather: Callable[[], ReportInput], monotonic_s: Callable[[], float]) -> None:
        self._gather = gather
        self._monotonic_s = monotonic_s
        self._snapshot: Snapshot | None = None
        self._began_s = 0.0
        self._error: DrvmError | None = None
        self._changed = threading.Condition()
        self._busy = False
        self._expired = False

    def get(self, *, wait: bool = True) -> Snapshot:
        """One that began less than ``OLD_S`` ago, if it can be had within a few seconds. Raises
        ``DrvmError`` where there has never been one."""
        with self._changed:
            age_s = self._monotonic_s() - self._began_s
            held = self._snapshot
            if not self._busy and (held is None or self._expired or age_s > FRESH_S):
                self._busy, self._expired = True, False
                threading.Thread(target=self._renew, name="report", daemon=True).start()
            if self._busy and wait and (held is None or age_s > OLD_S):
                limit_s = WAIT_FOR_FIRST_S if held is None else WAIT_FOR_NEWER_S
                self._changed.wait_for(lambda: not self._busy, limit_s)
            if self._snapshot is None:
                raise self._error or DrvmError(
                    "the report is not ready yet", hint="try again in a moment"
                )
            return self._snapshot

    def expire(self) -> None:
        """Something happened: the next look begins a new one."""
        with self._changed:
            self._expired = True

    def _renew(self) -> None:
        began_s = self._monotonic_s()
        made: tuple[ReportInput, Overview] | None = None
        failed: DrvmError | None = None
        try:
            report = self._gather()
            made = report, overview(report)
        except DrvmError as error:
            failed = error
        except Exception:
            log.exception("the dashboard's report could not be gathered: this is a bug")
            failed = DrvmError("the report could not be gathered", hint="the daemon's log says why")
        with self._changed:
            self._busy, self._error, self._began_s = False, failed, began_s
            version = 1 + (self._snapshot.version if self._snapshot is not None else 0)
            if made is not None:
                self._snapshot = Snapshot(*made, version)
            elif self._snapshot is not None and failed is not None:
                self._snapshot = dataclasses.replace(
                    self._snapshot, problem=failed.message, version=version
                )
            self._changed.notify_all()
