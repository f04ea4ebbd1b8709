"""Programs of this host's administrator, before and after a machine's backup.

They are run without a shell, one after the other, in a small environment that says what it is
about. What they write goes into the log. Their time is limited, and a stop of the daemon ends them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drvm.config.policies import HooksConfig
from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import DrvmError, Interrupted, Locked, ProcessFailed
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.core.text import printable
from drvm.daemon.task import Outcome

log = logging.getLogger("drvm.daemon")

MAX_OUTPUT_BYTES = 1 << 20
STOPPED_TIMEOUT_S = 5.0
"""What each program after a backup still gets where the daemon is stopping, or stops meanwhile."""
_MAX_LOGGED_CHARS = 2000
_MAX_VALUE_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """What a backup is about. ``host`` is a URI."""

    job: str
    vm: str
    vm_uuid: str
    host: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DRVM_JOB": self.job,
            "DRVM_VM": self.vm,
            "DRVM_VM_UUID": self.vm_uuid,
            "DRVM_HOST": self.host,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """How one backup ended: by its outcome, or by ``failure``, which may come after a good point
    (``outcome.result``)."""

    outcome: Outcome = field(default_factory=Outcome)
    failure: DrvmError | None = None

    def told(self) -> Outcome:
        """Raises the failure."""
        if self.failure is not None:
            raise self.failure
        return self.outcome


class Hooks:
    """The programs of one policy."""

    def __init__(
        self, config: HooksConfig, processes: Processes, clock: Clock | None = None
    ) -> None:
        self._config = config
        self._processes = processes
        self._clock = clock or SystemClock()

    def around(self, subject: Subject, progress: Progress, work: Callable[[], Result]) -> Result:
        """Where one before it fails, there is no backup; those after it always run."""
        try:
            self.before(subject, progress)
            result = work()
        except DrvmError as error:
            result = Result(failure=error)
        return self.after(subject, result, progress)

    def before(self, subject: Subject, progress: Progress) -> None:
        """Raises ``ProcessFailed`` and ``Interrupted``."""
        for argv in self._config.before:
            progress.stage(f"running {argv[0]}")
            try:
                self._run(
                    argv, subject.environment, self._config.timeout_s, lambda: progress.advance(0)
                )
            except ProcessFailed as error:
                raise ProcessFailed(
                    f"no backup, as a hook before it failed: {error.message}",
                    hint=error.hint or "hooks.before of the policy",
                ) from None

    def after(self, subject: Subject, result: Result, progress: Progress) -> Result:
        """All of them, whatever becomes of the others; a failure is a warning of the result."""
        failure, outcome = result.failure, result.outcome
        word = "done" if failure is None else "failed"
        if isinstance(failure, Interrupted | Locked):
            word = "stopped"
        elif failure is None and outcome.warned:
            word = "warned"
        environment = subject.environment | {
            "DRVM_OUTCOME": word,
            "DRVM_POINT": outcome.result,
            "DRVM_MESSAGE": failure.message if failure is not None else outcome.message,
        }
        for argv in self._config.after:
            try:
                self._run(argv, environment, self._config.timeout_s, self._short(argv, progress))
            except ProcessFailed as error:
                words = f"a hook after the backup failed: {error.message}"
                log.warning("%s: %s", subject.vm, words)
                message = f"{outcome.message}; {words}" if outcome.message else words
                outcome = dataclasses.replace(outcome, warned=True, message=message)
        return dataclasses.replace(result, outcome=outcome)

    def _short(self, argv: Sequence[str], progress: Progress) -> Callable[[], None]:
        """From when the daemon stops on, it has a short time."""
        ends_s: list[float] = []

        def beat() -> None:
            if not ends_s:
                try:
                    progress.advance(0)
                except Interrupted:
                    ends_s.append(self._clock.monotonic_s() + STOPPED_TIMEOUT_S)
            elif self._clock.monotonic_s() >= ends_s[0]:
                raise ProcessFailed(f"{argv[0]} was ended, as the daemon is stopping")

        return beat

    def _run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        timeout_s: float,
        beat: Callable[[], None],
    ) -> None:
        """What ``beat`` raises ends it."""
        output = self._processes.run(
            argv,
            timeout_s=timeout_s,
            env={name: printable(text, _MAX_VALUE_CHARS) for name, text in environment.items()},
            max_output_bytes=MAX_OUTPUT_BYTES,
            beat=beat,
        )
        for stream in (output.stdout, output.stderr):
            text = stream[: _MAX_LOGGED_CHARS * 4].decode(errors="replace").strip()
            if text:
                log.info("%s: %s", argv[0], printable(text, _MAX_LOGGED_CHARS, lines=True))
