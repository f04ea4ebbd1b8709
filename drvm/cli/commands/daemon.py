"""``drvm daemon``."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from drvm.cli.dashboard import DaemonSource, command_of
from drvm.cli.invocation import Invocation, require_config
from drvm.cli.jobs import doing_of
from drvm.cli.opening import opened
from drvm.config.settings import Settings
from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, Interrupted, Locked, StoreUnreachable, UsageError
from drvm.core.findings import Finding
from drvm.daemon.duties import Duties
from drvm.daemon.gathering import Gathering
from drvm.daemon.looked import Life, note_look
from drvm.daemon.loop import Service, Setup
from drvm.daemon.systemd import Systemd
from drvm.daemon.task import Chore
from drvm.daemon.watch import Watch
from drvm.notify.postman import Postman
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.snapshot.locks import try_lock
from drvm.web.access import read_token
from drvm.web.app import make_app
from drvm.web.server import Dashboard
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import finish_elsewhere, finish_leftovers
from drvm.wiring.keeping import let_go
from drvm.wiring.telling import pings_of, ways_of

log = logging.getLogger("drvm.daemon")

WATCH_EVERY_S = 60.0
_FIXED = ("state_dir", "daemon.dashboard")
"""Keys of the config that a reload does not change."""
LOCK_FILE = "daemon.lock"
FIRST_LOOK_S = 30.0
"""For the repository, at the start; then the daemon begins without it."""


@click.command("daemon")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Run the policies of the config by their schedules, until SIGTERM or Ctrl-C.

    At the start, guests that a killed backup left half-way are put back, and what is owed since the
    last run is done. On SIGHUP the config is read anew; one that is not valid changes nothing. On
    SIGTERM the daemon ends within 30 s: a running backup is given up, its guest put back, and what
    was uploaded is found again by the next one. Logs go to stderr: for people on a terminal, else a
    JSON object in each line.

    \b
    Example:
      drvm --config /etc/drvm/config.yaml daemon
    """
    require_config(invocation)
    invocation.log_unattended()
    settings = invocation.settings()
    state_dir = Path(settings.state_dir)
    with _alone(state_dir):
        with opened(invocation) as wiring:
            _recover(wiring)  # whatever becomes of the repository
            _try_repository(wiring)
        with RunLog(state_dir / RUNS_FILE, invocation.clock) as history:
            late, hangs = _Daemon(invocation, settings, history).run()
    if hangs:
        logging.shutdown()
        os._exit(1 if late else 0)


@dataclass(slots=True)
class _InForce:
    """All that belongs to one config; a reload makes new ones."""

    settings: Settings
    duties: Duties
    gathering: Gathering
    asking: Gathering
    watch: Watch
    postman: Postman
    clock: Clock

    def setup(self) -> Setup:
        look = Chore("alarms", WATCH_EVERY_S, lambda _: self.watch.look(self.clock.now()))
        return Setup(self.duties.plan, (*self.duties.chores(), look))

    def close(self) -> None:
        self.postman.stop()
        self.duties.close()
        self.gathering.close()
        self.asking.close()


class _Daemon:
    """The service, and what the config in force makes of it."""

    def __init__(self, invocation: Invocation, settings: Settings, history: RunLog) -> None:
        self._invocation = invocation
        self._history = history
        self._service: Service | None = None
        self._began = settings
        self._started = invocation.clock.now()
        self._now = self._in_force(settings, Life(started=self._started))

    def run(self) -> tuple[tuple[str, ...], bool]:
        """The runs that did not end, and whether threads are left: as of ``Service``."""
        clock, environ = self._invocation.clock, self._invocation.environ
        log.info("%d jobs; stop with SIGTERM", len(self._now.duties.scheduled))
        systemd = Systemd(environ, clock)
        service = Service(self._now.setup(), self._history, clock, systemd, self._reload)
        self._service = service
        dashboard = self._dashboard(service)
        self._now.postman.start()
        try:
            if dashboard is not None:
                dashboard.start()
            return service.run(), service.hangs
        finally:
            if not service.hangs:  # else the process is left, and its time is nearly over
                if dashboard is not None:
                    dashboard.stop()
                self._now.close()

    def _in_force(self, settings: Settings, life: Life) -> _InForce:
        """Raises ``UsageError`` where a passphrase can't be had, or nothing has a schedule."""
        clock = self._invocation.clock
        doing = doing_of(self._invocation, settings)
        duties = Duties(settings, doing, clock)
        if not duties.scheduled:
            raise UsageError(
                "no policy or copy of the config has a schedule",
                hint='add schedule: "0 3 * * *" to a policy',
            )
        gathering = Gathering(doing.open_wiring, self._history)
        asking = Gathering(doing.open_wiring, self._history)
        textfile = settings.daemon.metrics.textfile
        path = Path(textfile) if textfile is not None else None
        host = socket.gethostname()
        watch = Watch(gathering.report, self._history, clock, host, path, life=life)
        ways, pings = ways_of(settings), pings_of(settings)
        postman = Postman(ways, pings, self._history, clock, lambda: self._works(watch))
        watch.tell_by(postman)
        return _InForce(settings, duties, gathering, asking, watch, postman, clock)

    def _works(self, watch: Watch) -> bool:
        return self._service is not None and self._service.lives() and watch.works()

    def _reload(self) -> Setup:
        """Raises for a config that is not valid; then nothing has changed."""
        require_config(self._invocation)
        before, settings, now = self._now, self._invocation.settings(), self._invocation.clock.now()
        others = tuple(n for n in _FIXED if _value(settings, n) != _value(self._began, n))
        life = Life(started=self._started, config_read=now, restart_for=others)
        kept = replace(settings, state_dir=self._began.state_dir)
        self._now = self._in_force(kept, life)
        for name in others:
            log.warning("%s keeps its old value until the daemon is started again", name)
        if "state_dir" in others:  # where drvm status looks from now on
            with RunLog(Path(settings.state_dir) / RUNS_FILE, self._invocation.clock) as elsewhere:
                note_look(elsewhere, life, now)
        try:
            before.close()
        except Exception:  # the new one is in force, and the old one must not stay in its place
            log.exception("what the config before had open can't be closed: this is a bug")
        self._now.postman.start()
        return self._now.setup()

    def _dashboard(self, service: Service) -> Dashboard | None:
        wanted = self._now.settings.daemon.dashboard
        if wanted is None:
            return None
        source = DaemonSource(
            service,
            self._history,
            lambda: self._now.duties,
            lambda: self._now.gathering,
            lambda: self._now.asking,
            lambda: self._now.watch.metrics(),
            self._invocation.clock,
        )
        command = command_of(self._invocation.config_path())
        token_file, names = Path(wanted.token_file), wanted.host_names
        return Dashboard(
            lambda: make_app(source, read_token(token_file), host_names=names, command=command),
            wanted.address,
            wanted.port,
        )


def _value(settings: Settings, name: str) -> object:
    found: object = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Two with one record would do much twice, and withdraw each other's alarms. Where no lock can
    be had, as the directory can't be written, there is none. Raises ``Locked``."""
    with contextlib.ExitStack() as stack:
        try:
            held = try_lock(state_dir / LOCK_FILE)
        except OSError as error:
            log.warning("%s can't be locked: %s", state_dir, error.strerror)
        else:
            if held is None:
                raise Locked(
                    f"a daemon with the state directory {state_dir} runs already",
                    hint="systemctl status drvm; a second one needs a state_dir of its own",
                )
            stack.callback(os.close, held)
        yield


def _try_repository(wiring: Wiring) -> None:
    """A wrong key or URL ends the daemon now, not at three in the morning. A store that is away
    does not: guests are put back, people are told, and it will be there again.

    In a thread of its own: a store that takes requests and never answers would hold the start for
    minutes, with signals that its client may take for faults of the connection.
    """
    wiring.passphrase()  # here, where somebody may have to type it
    errors: list[BaseException] = []

    def look() -> None:
        try:
            with wiring.another() as mine:
                mine.repository()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)

    looking = threading.Thread(target=look, name="first look", daemon=True)
    looking.start()
    looking.join(FIRST_LOOK_S)
    if looking.is_alive():
        log.error("the repository can't be looked at yet: no answer within %g s", FIRST_LOOK_S)
    for error in errors:
        if not isinstance(error, StoreUnreachable):
            raise error
        log.error("the repository can't be looked at yet: %s", error.message)


def _recover(wiring: Wiring) -> None:
    """A host that does not answer, or a machine that can't be put back, keeps nobody waiting."""
    for uri in wiring.settings.host_uris:
        try:
            _log(finish_leftovers(wiring, wiring.host(uri)))
        except Interrupted:
            raise
        except DrvmError as error:
            log.error("%s: leftovers could not be looked for: %s", uri, error.with_hint)
    _log(finish_elsewhere(wiring) + let_go(wiring))


def _log(findings: list[Finding]) -> None:
    for done in findings:
        hint = f" (hint: {done.hint})" if done.hint and not done.ok else ""
        level = logging.INFO if done.ok else logging.ERROR
        log.log(level, "%s: %s%s", done.name, done.detail, hint)
